//! Owns the seam to the program: what a call stack is, and who can tell one.

/// The most frames of one stack.
pub const MAX_FRAMES: usize = 128;

/// One frame of a call stack, as two words that its [`StackSource`] understands.
///
/// Two frames are the same place of the program exactly if both words are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Frame {
    /// What is running: the address of a function or of a code object.
    pub code: usize,
    /// Where in it: an instruction, or a line.
    pub at: usize,
}

/// What a [`Frame`] is called.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Location {
    /// The function's name; empty if it has none.
    pub function: String,
    /// The source file; empty if it is not known.
    pub file: String,
    /// The line, from 1; 0 if it is not known.
    pub line: u32,
}

/// Tells the call stack of the calling thread.
pub trait StackSource: Sync {
    /// Writes the frames of the calling thread's stack to `frames`, innermost first, and returns how many there are; no more
    /// than fit.
    ///
    /// Runs inside of every recorded allocation. What it allocates from the profiled allocator itself is not recorded.
    fn capture(&self, frames: &mut [Frame]) -> usize;

    /// The place that `frame` stands for; called once for each distinct frame, by the thread that has just captured it.
    ///
    /// Frames of one place are one in every stack: a source that knows lines returns a line for each instruction, so that a
    /// stack is not another one for each call of one line. What a name needs later must be kept alive from here on, as the
    /// words of a frame may stand for something else as soon as the program has dropped its code.
    fn place(&self, frame: Frame) -> Frame {
        frame
    }

    /// The name of what [`place`](Self::place) returned.
    fn locate(&self, place: Frame) -> Location;
}

impl<S: StackSource + ?Sized> StackSource for &S {
    fn capture(&self, frames: &mut [Frame]) -> usize {
        (**self).capture(frames)
    }

    fn place(&self, frame: Frame) -> Frame {
        (**self).place(frame)
    }

    fn locate(&self, place: Frame) -> Location {
        (**self).locate(place)
    }
}
