//! Owns the text of a native frame, from debug information: function, file and line, inlined calls too.
//! Making it allocates. Twin of `symbols.rs`.

use core::fmt;

/// Writes the lines of one return address.
pub(crate) fn write(frame: usize, out: &mut dyn fmt::Write) -> fmt::Result {
    let mut result = Ok(());
    let mut any = false;
    // The call is before the address that it returns to.
    let at = core::ptr::without_provenance_mut(frame - 1);
    backtrace::resolve(at, |symbol| {
        any = true;
        result = result.and_then(|()| write_symbol(frame, symbol, out));
    });
    if !any {
        writeln!(out, "  {frame:#x}")?;
    }
    result
}

fn write_symbol(frame: usize, symbol: &backtrace::Symbol, out: &mut dyn fmt::Write) -> fmt::Result {
    write!(out, "  {frame:#x}")?;
    if let Some(name) = symbol.name() {
        write!(out, " in {name:#}")?;
    }
    if let (Some(file), Some(line)) = (symbol.filename(), symbol.lineno()) {
        write!(out, " ({}:{line})", file.display())?;
    }
    out.write_str("\n")
}
