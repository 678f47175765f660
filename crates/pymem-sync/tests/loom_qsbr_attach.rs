//! Attach racing the scan: either the scan sees the reader, or the reader does not see what was unlinked.
#![cfg(pymem_loom)]

#[path = "model/cell.rs"]
mod cell;
#[path = "model/mod.rs"]
mod model;

use cell::Linked;
use loom::thread;
use model::{Leak, Model};
use pymem_sync::qsbr::{Collector, Participant};
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
        let world = Leak::new((Collector::new(), Linked::new()));
        let (collector, linked) = world.get();
        let participant = Participant::register(collector).unwrap();
        let reader = thread::spawn(move || {
            participant.attach();
            linked.read();
            participant.detach();
        });
        linked.unlink();
        let goal = collector.advance();
        if collector.poll(goal) {
            linked.free();
        }
        reader.join().unwrap();
        assert!(collector.poll(goal), "everybody has left");
        world.free();
    });
}
