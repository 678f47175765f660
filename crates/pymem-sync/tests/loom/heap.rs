//! A heap of a few blocks that other threads free, and the model of two of them.
#![allow(dead_code, reason = "each model uses what it needs")]

use std::cell::Cell;
use std::ptr::NonNull;

use loom::thread;
use pymem_sync::RemoteStack;

use crate::model::{Leak, Plain};

#[repr(C)]
pub(crate) struct Block {
    link: Cell<usize>,
    contents: Plain<usize>,
}

pub(crate) struct Heap<const BLOCKS: usize> {
    pub(crate) stack: RemoteStack,
    blocks: [Block; BLOCKS],
}

// SAFETY: the link words belong to whoever the stack says, which is what the model checks.
unsafe impl<const BLOCKS: usize> Sync for Heap<BLOCKS> {}

impl<const BLOCKS: usize> Heap<BLOCKS> {
    pub(crate) fn new() -> Leak<Self> {
        let block = |_| Block { link: Cell::new(0), contents: Plain::new(0) };
        Leak::new(Self { stack: RemoteStack::new(), blocks: std::array::from_fn(block) })
    }

    pub(crate) fn free_remotely(&self, number: usize) {
        let block = &self.blocks[number];
        block.contents.write(number + 1);
        // SAFETY: (1) the link is the block's first word; (2) each number is pushed once.
        unsafe { self.stack.push(NonNull::from(&block.link).cast()) };
    }

    /// Drains and counts each block.
    pub(crate) fn drain(&self, seen: &mut [u32; BLOCKS]) {
        for block in self.stack.drain() {
            // SAFETY: a drained block is one of ours.
            let number = unsafe { block.cast::<Block>().as_ref() }.contents.read() - 1;
            seen[number] += 1;
        }
    }
}

/// Two threads free `EACH` blocks while the owner drains.
pub(crate) fn two_pushers<const EACH: usize, const BLOCKS: usize>() {
    let heap = Heap::<BLOCKS>::new();
    let shared = heap.get();
    let push =
        |first| move || (first..first + EACH).for_each(|number| shared.free_remotely(number));
    let pushers = [thread::spawn(push(0)), thread::spawn(push(EACH))];
    let mut seen = [0; BLOCKS];
    shared.drain(&mut seen);
    pushers.into_iter().for_each(|pusher| pusher.join().unwrap());
    shared.drain(&mut seen);
    assert_eq!(seen, [1; BLOCKS]);
    assert!(shared.stack.is_empty());
    heap.free();
}
