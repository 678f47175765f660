//! Abandon against remote free against adopt, in three threads and up to 4 preemptions: no block is stranded, and there is
//! one owner at a time.
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
fn nothing_is_stranded_and_one_owner_follows() {
    let model = Model {
        name: "nothing_is_stranded_and_one_owner_follows",
        preemptions: Some(4),
        floor: 5_000,
        controls: &[Site::StackPush, Site::StackAbandon, Site::StackAdopt, Site::StackKeepMark],
    };
    model.check(|| {
        let heap = Heap::new();
        let shared = heap.get();
        let leaver = thread::spawn(move || (shared.leave(), 0));
        let freer = thread::spawn(move || shared.free_remotely());
        let adopted = shared.try_adopt();
        Heap::settle(heap, [leaver.join().unwrap(), freer.join().unwrap(), adopted]);
    });
}
