//! The remote-free stack loses and doubles no block, and the drainer sees each block's contents.
#![cfg(pymem_loom)]

#[path = "model/mod.rs"]
mod model;

use std::cell::Cell;
use std::ptr::NonNull;

use loom::thread;
use model::{Leak, Model, Plain};
use pymem_sync::RemoteStack;
use pymem_sync::sync::Site;

const CONTROLS: &[Site] = &[Site::StackPush, Site::StackDrain];

#[repr(C)]
struct Block {
    link: Cell<usize>,
    contents: Plain<usize>,
}

struct Heap<const BLOCKS: usize> {
    stack: RemoteStack,
    blocks: [Block; BLOCKS],
}

// SAFETY: the link words belong to whoever the stack says, which is what the model checks.
unsafe impl<const BLOCKS: usize> Sync for Heap<BLOCKS> {}

impl<const BLOCKS: usize> Heap<BLOCKS> {
    fn new() -> Leak<Self> {
        let block = |_| Block { link: Cell::new(0), contents: Plain::new(0) };
        Leak::new(Self { stack: RemoteStack::new(), blocks: std::array::from_fn(block) })
    }

    fn free_remotely(&self, number: usize) {
        let block = &self.blocks[number];
        block.contents.write(number + 1);
        // SAFETY: (1) the link is the block's first word; (2) each number is pushed once.
        unsafe { self.stack.push(NonNull::from(&block.link).cast()) };
    }

    /// Drains and counts each block.
    fn drain(&self, seen: &mut [u32; BLOCKS]) {
        for block in self.stack.drain() {
            // SAFETY: a drained block is one of ours.
            let number = unsafe { block.cast::<Block>().as_ref() }.contents.read() - 1;
            seen[number] += 1;
        }
    }
}

fn two_pushers<const EACH: usize, const BLOCKS: usize>() {
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

#[test]
fn two_pushers_of_one_block() {
    let model = Model {
        name: "two_pushers_of_one_block",
        preemptions: None,
        floor: 200,
        controls: CONTROLS,
    };
    model.check(two_pushers::<1, 2>);
}

#[test]
fn two_pushers_of_two_blocks() {
    let model = Model {
        name: "two_pushers_of_two_blocks",
        preemptions: None,
        floor: 20_000,
        controls: CONTROLS,
    };
    model.check(two_pushers::<2, 4>);
}

#[test]
fn an_unfinished_drain_puts_its_blocks_back() {
    let model = Model {
        name: "an_unfinished_drain_puts_its_blocks_back",
        preemptions: None,
        floor: 20,
        controls: CONTROLS,
    };
    model.check(|| {
        let heap = Heap::<3>::new();
        let shared = heap.get();
        shared.free_remotely(0);
        shared.free_remotely(1);
        let pusher = thread::spawn(move || shared.free_remotely(2));
        drop(shared.stack.drain());
        let mut seen = [0; 3];
        shared.drain(&mut seen);
        pusher.join().unwrap();
        shared.drain(&mut seen);
        assert_eq!(seen, [1; 3]);
        heap.free();
    });
}
