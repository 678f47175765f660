//! Owns [`ThreadState`], a thread's side of delayed free, and [`RetiredBlock`], what waits there: blocks that lock-free
//! readers may still see, until every attached thread has been quiescent. The queue and its rules are `pymem_sync::qsbr`'s;
//! here is what reclaiming means: a free.

use core::ptr::NonNull;

use pymem_sync::qsbr::{Delayed, Domain, Limits, Participant, Reclaim};

use crate::{ffi, free};

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

    /// The block, which is retired no longer.
    pub(crate) fn into_block(self) -> NonNull<u8> {
        self.block
    }
}

impl Reclaim for RetiredBlock {
    fn bytes(&self) -> usize {
        self.bytes
    }

    fn reclaim(self) {
        // SAFETY: (1), (2): (D1); the caller of `ThreadHeaps::free_delayed` has promised that no reader can see it once the goal is
        // reached.
        unsafe { free::free(self.block) };
    }
}

/// One thread's side of delayed free in one interpreter.
#[derive(Debug)]
pub(crate) struct ThreadState {
    /// Dropped first: leaves its blocks to the interpreter.
    pub(crate) delayed: Delayed<'static, RetiredBlock>,
    pub(crate) participant: Participant<'static>,
}

impl ThreadState {
    /// Registers the calling thread, offline; `None` if there is no memory.
    pub(crate) fn new(domain: &'static Domain<RetiredBlock>, limits: Limits) -> Option<Self> {
        let participant = Participant::register(domain.collector()).ok()?;
        Some(Self { delayed: Delayed::new(domain, limits)?, participant })
    }
}
