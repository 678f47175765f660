//! Attach racing the scan: either the scan sees the reader, or the reader does not see what was unlinked.
#![cfg(pymem_loom)]

#[path = "model/cell.rs"]
mod cell;
#[path = "model/mod.rs"]
mod model;

use cell::Linked;
use loom::thread;
use model::{Leak, Model};
use pymem_sync::qsbr::Shared;
use pymem_sync::sync::Site;

#[test]
fn a_reader_that_attaches_meanwhile_is_seen_or_sees() {
    let model = Model {
        name: "a_reader_that_attaches_meanwhile_is_seen_or_sees",
        preemptions: None,
        floor: 30_000,
        controls: &[Site::QsbrAttachFence, Site::QsbrScanFence],
    };
    model.check(|| {
        let world = Leak::new((Shared::new(), Linked::new()));
        let (shared, linked) = world.get();
        let participant = shared.register().unwrap();
        let reader = thread::spawn(move || {
            participant.attach();
            linked.read();
            participant.detach();
        });
        linked.unlink();
        let goal = shared.advance();
        if shared.poll(goal) {
            linked.free();
        }
        reader.join().unwrap();
        assert!(shared.poll(goal), "everybody has left");
        world.free();
    });
}
