//! A heap whose owner leaves while a block is freed and somebody else looks for a heap.
#![allow(dead_code, reason = "each model uses what it needs")]

use std::cell::Cell;
use std::ptr::NonNull;

use pymem_sync::RemoteStack;

use super::model::{Leak, Plain};

#[repr(C)]
pub(crate) struct Block {
    link: Cell<usize>,
    contents: Plain<bool>,
}

pub(crate) struct Heap {
    pub(crate) stack: RemoteStack,
    block: Block,
    /// Only the owner touches it.
    pub(crate) owners: Plain<usize>,
}

// SAFETY: the link word belongs to whoever the stack says, which is what the model checks.
unsafe impl Sync for Heap {}

impl Heap {
    /// Reads the blocks of a drain and counts them.
    pub(crate) fn count(&self, blocks: impl Iterator<Item = NonNull<u8>>) -> usize {
        // SAFETY: a drained block is ours.
        blocks.filter(|block| unsafe { block.cast::<Block>().as_ref() }.contents.read()).count()
    }

    pub(crate) fn new() -> Leak<Self> {
        Leak::new(Self {
            stack: RemoteStack::new(),
            block: Block { link: Cell::new(0), contents: Plain::new(false) },
            owners: Plain::new(0),
        })
    }

    /// What the first owner does at its end; the blocks that it still got.
    pub(crate) fn leave(&self) -> usize {
        self.owners.write(1);
        let drained = self.count(self.stack.drain());
        self.stack.abandon();
        drained
    }

    /// Frees the block from another thread, which may adopt a heap that it finds without an owner.
    pub(crate) fn free_remotely(&self) -> (usize, usize) {
        self.block.contents.write(true);
        // SAFETY: (1) the link is the block's first word; (2) pushed once.
        let pushed = unsafe { self.stack.push(NonNull::from(&self.block.link).cast()) };
        if pushed.ownerless { self.try_adopt() } else { (0, 0) }
    }

    /// Everybody is done: the block was found once, and one thread followed the first owner.
    pub(crate) fn settle(heap: Leak<Self>, outcomes: [(usize, usize); 3]) {
        let shared = heap.get();
        let mut blocks: usize = outcomes.iter().map(|outcome| outcome.0).sum();
        let adopters: usize = outcomes.iter().map(|outcome| outcome.1).sum();
        assert!(adopters <= 1, "two threads own the heap");
        if adopters == 0 {
            let (found, adopted) = shared.try_adopt();
            assert_eq!(adopted, 1, "the owner has left, but nobody can follow");
            blocks += found;
        } else {
            blocks += shared.count(shared.stack.drain());
        }
        assert_eq!(blocks, 1, "stranded or doubled");
        assert_eq!(shared.owners.read(), 2);
        heap.free();
    }

    /// Becomes the owner if there is none: the blocks that waited, and whether that worked.
    pub(crate) fn try_adopt(&self) -> (usize, usize) {
        let Some(blocks) = self.stack.adopt() else { return (0, 0) };
        let blocks = self.count(blocks);
        self.owners.write(self.owners.read() + 1);
        (blocks, 1)
    }
}
