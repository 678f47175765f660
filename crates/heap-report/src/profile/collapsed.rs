//! Owns the collapsed stacks: one line a stack, which flame graph programs read.

use core::fmt;

use super::file::{NO_FRAME, ProfileFile, Which};

/// Writes a profile as collapsed stacks: the frames, outermost first, with semicolons between them, and the bytes.
///
/// Sites without bytes are left out. A site without a stack stands as `(no frame)`.
#[derive(Clone, Copy, Debug)]
pub struct Collapsed<'a>(pub &'a ProfileFile, pub Which);

impl fmt::Display for Collapsed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(file, which) = *self;
        for row in file.rows() {
            let bytes = row.amount(which).bytes;
            if bytes == 0 {
                continue;
            }
            let mut stack: Vec<_> = row.stack().collect();
            stack.reverse();
            if stack.is_empty() {
                f.write_str(NO_FRAME.0)?;
            }
            for (depth, (function, file, line)) in stack.into_iter().enumerate() {
                let between = if depth == 0 { "" } else { ";" };
                // A semicolon within a name would end the frame.
                write!(f, "{between}{} ({}", plain(function), plain(file))?;
                // A native frame has no line.
                if line > 0 {
                    write!(f, ":{line}")?;
                }
                write!(f, ")")?;
            }
            writeln!(f, " {bytes}")?;
        }
        Ok(())
    }
}

/// A name without what the format uses itself.
fn plain(name: &str) -> String {
    name.replace(';', ":").replace(['\n', '\r'], " ")
}
