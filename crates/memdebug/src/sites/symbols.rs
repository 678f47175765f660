//! Owns the text of a native frame, from the dynamic symbol table alone: nothing is allocated.
//! Twin: `symbols_backtrace.rs`, which knows inlined functions, files and lines.

use core::ffi::CStr;
use core::fmt;

/// Writes the line of one return address.
pub(crate) fn write(frame: usize, out: &mut dyn fmt::Write) -> fmt::Result {
    // The call is before the address that it returns to.
    let at = core::ptr::without_provenance::<libc::c_void>(frame - 1);
    // SAFETY: `Dl_info` is plain pointers, for which zero is a value.
    let mut info: libc::Dl_info = unsafe { core::mem::zeroed() };
    // SAFETY: any address may be asked for; `info` is writable.
    let known = unsafe { libc::dladdr(at, &mut info) } != 0;
    write!(out, "  {frame:#x}")?;
    if known {
        let base = info.dli_fbase.addr();
        let text = |name: *const libc::c_char| {
            // SAFETY: `dladdr` gives null or a string that lives as long as its library.
            (!name.is_null()).then(|| unsafe { CStr::from_ptr(name) })
        };
        if let Some(name) = text(info.dli_sname) {
            write!(out, " in {}", name.to_bytes().escape_ascii())?;
        }
        if let Some(file) = text(info.dli_fname) {
            write!(out, " ({}+{:#x})", file.to_bytes().escape_ascii(), frame - base)?;
        }
    }
    out.write_str("\n")
}
