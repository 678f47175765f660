//! Abandon against remote free, and remote free against adopt: no block is stranded, and there is one owner at a time.
#![cfg(pymem_loom)]

#[path = "model/heir.rs"]
mod heir;
#[path = "model/mod.rs"]
mod model;

use heir::Heap;
use loom::thread;
use model::Model;
use pymem_sync::sync::Site;

#[test]
fn a_leaver_and_a_freer_strand_nothing() {
    let model = Model {
        name: "a_leaver_and_a_freer_strand_nothing",
        preemptions: None,
        floor: 100,
        controls: &[Site::StackAbandon, Site::StackAdopt, Site::StackPush, Site::StackKeepMark],
    };
    model.check(|| {
        let heap = Heap::new();
        let shared = heap.get();
        let freer = thread::spawn(move || shared.free_remotely());
        let drained = shared.leave();
        Heap::settle(heap, [(drained, 0), freer.join().unwrap(), (0, 0)]);
    });
}

#[test]
fn a_leaver_and_an_adopter_make_one_owner() {
    let model = Model {
        name: "a_leaver_and_an_adopter_make_one_owner",
        preemptions: None,
        floor: 50,
        controls: &[Site::StackAbandon, Site::StackAdopt],
    };
    model.check(|| {
        let heap = Heap::new();
        let shared = heap.get();
        let freed = shared.free_remotely();
        let adopter = thread::spawn(move || shared.try_adopt());
        let drained = shared.leave();
        Heap::settle(heap, [(drained, 0), freed, adopter.join().unwrap()]);
    });
}

#[test]
fn a_freer_and_an_adopter_make_one_owner() {
    let model = Model {
        name: "a_freer_and_an_adopter_make_one_owner",
        preemptions: None,
        floor: 500,
        controls: &[Site::StackAdopt, Site::StackPush, Site::StackKeepMark],
    };
    model.check(|| {
        let heap = Heap::new();
        let shared = heap.get();
        let drained = shared.leave();
        let freer = thread::spawn(move || shared.free_remotely());
        let adopted = shared.try_adopt();
        Heap::settle(heap, [(drained, 0), freer.join().unwrap(), adopted]);
    });
}
