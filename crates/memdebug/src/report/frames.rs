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

/// Keeps the host's own stacks, those of a Python program say, each distinct one under a number.
///
/// With backtraces on, it is asked on every allocation, and on every free of a block that is held. What it allocates from the hooks
/// meanwhile is served, and has no site. A process can have seven of these; the hosts of further ones have native frames alone.
#[derive(Clone, Copy, Debug)]
pub struct HostStacks {
    /// The number of the calling thread's stack, up to [`MAX`](Self::MAX), or 0 for one without frames; `None` while this thread
    /// is already being asked.
    pub current: fn() -> Option<u32>,
    /// Gives the frames of the stack with this number. It must not allocate from the hooks.
    pub show: fn(u32, &mut dyn FrameSink),
    /// One number for all stacks whose frames are shown alike. Reports ask, no allocation does.
    pub alike: fn(u32) -> u32,
}

impl HostStacks {
    /// The largest number of a stack; further stacks have none.
    pub const MAX: u32 = (1 << 25) - 1;
}

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
