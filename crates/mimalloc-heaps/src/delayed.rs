//! Owns delayed free: blocks that lock-free readers may still see wait in the thread's queue until every attached thread
//! has been quiescent. The queue and its rules are `pymem_sync::qsbr`'s; here is what reclaiming means: `mi_free`.

use core::cell::Cell;
use core::ptr::NonNull;

use pymem_sync::qsbr::{Delayed, Participant, Reclaim};

use crate::interpreter::Interpreter;
use crate::{HeapError, ffi};

/// A retired block.
#[derive(Debug)]
pub(crate) struct RetiredBlock {
    /// (D1) A live block of mimalloc that the queue alone may free.
    block: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the block is the queue's alone (D1), and mimalloc takes back a block on any thread.
unsafe impl Send for RetiredBlock {}

impl RetiredBlock {
    /// A block for the queue.
    ///
    /// # Safety
    ///
    /// 1. `block` is a live block of mimalloc, and nobody else frees or resizes it.
    pub(crate) unsafe fn new(block: NonNull<u8>) -> Self {
        // SAFETY: (1) live.
        let bytes = unsafe { ffi::mi_usable_size(block.as_ptr().cast()) };
        Self { block, bytes }
    }

    /// The block again.
    pub(crate) fn into_block(self) -> NonNull<u8> {
        self.block
    }
}

impl Reclaim for RetiredBlock {
    fn bytes(&self) -> usize {
        self.bytes
    }

    fn reclaim(self) {
        // SAFETY: (D1); the caller of `free_delayed` has promised that no reader can see it once the goal is reached.
        unsafe { ffi::mi_free(self.block.as_ptr().cast()) };
    }
}

/// A thread's side of delayed free, at an address that does not move while the thread is attached.
#[derive(Debug)]
pub(crate) struct ThreadState {
    /// Dropped first: hands the queue over.
    pub(crate) delayed: Delayed<'static, RetiredBlock>,
    pub(crate) participant: Participant<'static>,
    /// The number of the interpreter that the thread is attached to.
    pub(crate) interpreter: u64,
    /// The state of another interpreter that the same thread is attached to.
    pub(crate) next: Cell<*const ThreadState>,
}

impl ThreadState {
    /// Registers the calling thread, offline.
    pub(crate) fn new(
        interpreter: &'static Interpreter,
        next: *const Self,
    ) -> Result<Self, HeapError> {
        let participant = interpreter.shared.register().map_err(|_| HeapError::OutOfMemory)?;
        Ok(Self {
            delayed: Delayed::new(&interpreter.shared, &interpreter.orphans, interpreter.limits()),
            participant,
            interpreter: interpreter.id(),
            next: Cell::new(next),
        })
    }

    /// The state on the heap.
    pub(crate) fn into_raw(self) -> NonNull<Self> {
        NonNull::from(Box::leak(Box::new(self)))
    }

    /// The state, to drop it.
    ///
    /// # Safety
    ///
    /// 1. `state` came out of [`into_raw`](Self::into_raw), and nobody else uses it any more.
    pub(crate) unsafe fn from_raw(state: *mut Self) -> Box<Self> {
        // SAFETY: (1) a leaked box.
        unsafe { Box::from_raw(state) }
    }
}
