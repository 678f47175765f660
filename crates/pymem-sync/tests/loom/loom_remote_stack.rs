//! The remote-free stack loses and doubles no block, and the drainer sees each block's contents.

use loom::thread;
use pymem_sync::sync::Site;

use crate::heap::{Heap, two_pushers};
use crate::model::Model;

const CONTROLS: &[Site] = &[Site::StackPush, Site::StackDrain];

#[test]
fn two_pushers_of_one_block() {
    let model = Model {
        name: "two_pushers_of_one_block",
        preemptions: None,
        floor: 40_000,
        controls: CONTROLS,
    };
    model.check(two_pushers::<1, 2>);
}

#[test]
fn an_unfinished_drain_puts_its_blocks_back() {
    let model = Model {
        name: "an_unfinished_drain_puts_its_blocks_back",
        preemptions: None,
        floor: 30_000,
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
