//! Owns what a frame of a traceback is, and who supplies some.
//! Leaves keeping frames to `site.rs`, and writing a report to `dump.rs`.

use core::fmt::{self, Write as _};

/// Takes traceback lines one by one, most recent call first.
pub trait FrameSink {
    /// Adds one frame: a file, a line counted from 1, and the function where it is known.
    fn frame(&mut self, file: &str, line: u32, function: Option<&str>);

    /// Whether further frames would be dropped, so that their supplier can stop.
    fn is_full(&self) -> bool {
        false
    }
}

/// What a [`Traceback`] supplier knows of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tracing {
    /// Allocations are not traced.
    Off,
    /// They are, but not this block: it is older than the tracing.
    Unknown,
    /// They are, and its frames were given to the sink.
    Known,
}

/// Gives where the block at this address (the caller's pointer) was allocated, as `tracemalloc` does.
///
/// It is called while a violation is being reported. It must not allocate from the hooks.
pub type Traceback = fn(usize, &mut dyn FrameSink) -> Tracing;

/// Gives the calling thread's current frames, for the sites of allocations and frees.
///
/// It is called on each allocation and free while backtraces are on, and must cope with a thread that has no frames. What
/// it allocates from the hooks is served, and has no site.
pub type CurrentFrames = fn(&mut dyn FrameSink);

/// Text with everything but ASCII escaped, as CPython writes file names to a file descriptor.
pub(crate) struct Ascii<'a>(pub(crate) &'a str);

impl fmt::Display for Ascii<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match u32::from(c) {
                0x20..0x7f => f.write_char(c)?,
                n @ 0..0x100 => write!(f, "\\x{n:02x}")?,
                n @ 0x100..0x1_0000 => write!(f, "\\u{n:04x}")?,
                n => write!(f, "\\U{n:08x}")?,
            }
        }
        Ok(())
    }
}
