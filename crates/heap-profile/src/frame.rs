//! Owns `Frame`, and what a source can tell of the calls on a stack.

/// One frame of a call stack, as two words that its [`StackSource`](crate::StackSource) understands.
///
/// Two frames are the same place of the program exactly if both words are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Frame {
    /// What is running: the address of a function or of a code object.
    pub code: usize,
    /// Where in it: an instruction, or a line.
    pub at: usize,
}

/// The number of a node in the tree of stacks and 1; 0 above the outermost frame.
pub(crate) type Link = u32;

/// What a source can tell of calls that are on the stack now.
pub trait Calls {
    /// Where the call is; `None` if it is to be left out.
    fn frame(&self, call: usize) -> Option<Frame>;

    /// Where in its code the call is, which is not left out.
    fn at(&self, call: usize) -> usize;

    /// Whether the call, which was at this frame, is there still.
    fn is_at(&self, call: usize, frame: Frame) -> bool;

    /// Whether `caller`, which has a frame, is the nearest caller of the call that has one.
    fn is_called_by(&self, call: usize, caller: usize) -> bool;

    /// As [`is_called_by`](Self::is_called_by), if that is told by a few words; `false` otherwise.
    #[inline(always)]
    fn is_plainly_called_by(&self, call: usize, caller: usize) -> bool {
        self.is_called_by(call, caller)
    }

    /// Whether the call has no caller, if that is told by a few words; `false` otherwise.
    #[inline(always)]
    fn is_plainly_outermost(&self, call: usize) -> bool {
        self.caller(call) == 0
    }

    /// The record itself if it has a frame, or its nearest caller that has one; 0 for none.
    #[inline(always)]
    fn with_frame(&self, record: usize) -> usize {
        record
    }

    /// The nearest caller of the call that has a frame; 0 for none.
    fn caller(&self, call: usize) -> usize;
}

/// A source of stacks that are the calls of a thread and no more, which each allocation asks.
///
/// # Safety
///
/// 1. Neither a call that is told nor the newest record has the largest number.
/// 2. Neither the source nor the calls that it tells allocate or free, ask for a stack, or end a thread.
pub unsafe trait PlainSource {
    /// The calling thread's newest record, and who can tell of the calls from [there](Calls::with_frame) on; `None` where that is not all that
    /// [`capture`](crate::StackSource::capture) would show, code has died since the source was of this `age`, or an address at which frames are belongs
    /// to more than one code.
    ///
    /// What a source does here is compiled into each allocation.
    fn plain_calls(&self, age: usize) -> Option<(usize, impl Calls)>;
}

/// The calls of a source that tells none so.
pub(crate) struct NoCalls;

// SAFETY: 1, 2: it tells none, and does nothing.
unsafe impl PlainSource for NoCalls {
    #[inline(always)]
    fn plain_calls(&self, _: usize) -> Option<(usize, impl Calls)> {
        None::<(usize, Self)>
    }
}

impl Calls for NoCalls {
    fn frame(&self, _: usize) -> Option<Frame> {
        None
    }

    fn at(&self, _: usize) -> usize {
        0
    }

    fn is_at(&self, _: usize, _: Frame) -> bool {
        false
    }

    fn is_called_by(&self, _: usize, _: usize) -> bool {
        false
    }

    fn caller(&self, _: usize) -> usize {
        0
    }
}
