//! A link to one of two blocks, which a reclaimer moves from the old one to the new one.
#![allow(dead_code, reason = "each model uses what it needs")]

use loom::sync::atomic::{AtomicUsize, Ordering};

use crate::model::Plain;

pub(crate) struct Linked {
    link: AtomicUsize,
    blocks: [Plain<u32>; 2],
}

impl Linked {
    pub(crate) fn new() -> Self {
        Self { link: AtomicUsize::new(0), blocks: [Plain::new(1), Plain::new(1)] }
    }

    /// What a reader does between two quiescent states: follows the link and touches the block.
    pub(crate) fn read(&self) {
        let number = self.link.load(Ordering::Acquire);
        assert_eq!(self.blocks[number].read(), 1, "read after free");
    }

    /// Makes the old block unreachable for new readers.
    pub(crate) fn unlink(&self) {
        self.link.store(1, Ordering::Release);
    }

    /// Frees the old block: races with every read of it that does not come before.
    pub(crate) fn free(&self) {
        self.blocks[0].write(0);
    }
}
