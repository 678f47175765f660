//! Owns the seam to the program: what a call stack is, and who can tell one.
//! Leaves the comparison of one stack with the next to `walk.rs`.

use std::sync::Arc;

use crate::frame::{Frame, NoCalls, PlainSource};
use crate::walk::Walk;

/// The most frames of one stack.
pub const MAX_FRAMES: usize = 128;

/// What a [`Frame`] is called.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Location {
    /// The function's name; empty if it has none.
    pub function: Arc<str>,
    /// The source file; empty if it is not known.
    pub file: Arc<str>,
    /// The line, from 1; 0 if it is not known.
    pub line: u32,
}

/// Tells the call stack of the calling thread.
pub trait StackSource: Sync {
    /// Shows `walk` the frames of the calling thread's stack, innermost first, until the walk asks to stop.
    ///
    /// Runs inside of every recorded allocation. What it allocates from the profiled allocator itself is not recorded.
    fn capture(&self, walk: &mut Walk<'_>);

    /// Who tells stacks that are calls and no more; `None` where nobody does.
    ///
    /// What a source does here is compiled into each allocation.
    fn plain(&self) -> Option<&impl PlainSource> {
        None::<&NoCalls>
    }

    /// The place that `frame` stands for, called by the thread that has just captured it; `None` leaves the frame out of the
    /// stack.
    ///
    /// Frames of one place are one in every stack: a source that knows lines returns a line for each instruction, so that a
    /// stack is not another one for each call of one line. What a name needs later must be kept from here on, as the
    /// words of a frame may stand for something else as soon as the program has dropped its code; a source whose code is dropped
    /// counts [uses](Self::usage). A frame that is no longer one of the calling thread may be shown again if its use has ended.
    fn place(&self, frame: Frame) -> Option<Frame> {
        Some(frame)
    }

    /// The words of `frame`, and how often they have stood for something else before.
    ///
    /// A source that keeps nothing alive shows frames in which it has put that number, and takes it out again here; by default a
    /// frame's words stand for one thing for ever.
    fn usage(&self, frame: Frame) -> (Frame, u32) {
        (frame, 0)
    }

    /// The name of what [`place`](Self::place) returned.
    fn locate(&self, place: Frame) -> Location;
}

impl<S: StackSource + ?Sized> StackSource for &S {
    fn capture(&self, walk: &mut Walk<'_>) {
        (**self).capture(walk);
    }

    fn plain(&self) -> Option<&impl PlainSource> {
        (**self).plain()
    }

    fn place(&self, frame: Frame) -> Option<Frame> {
        (**self).place(frame)
    }

    fn usage(&self, frame: Frame) -> (Frame, u32) {
        (**self).usage(frame)
    }

    fn locate(&self, place: Frame) -> Location {
        (**self).locate(place)
    }
}
