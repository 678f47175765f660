//! A scan by a thread that knows nothing of an unlink reaches its goal only when new readers see the unlink.
//!
//! R attaches, reads the link and touches the block; T unlinks the block, advances and frees it if its goal is reached; P
//! advances and scans for a goal of its own, and may thereby reach T's.

use loom::thread;
use pymem_sync::qsbr::{Collector, Participant};
use pymem_sync::sync::Site;

use crate::cell::Linked;
use crate::model::{Leak, Model};

#[test]
fn a_stranger_scans() {
    let model = Model {
        name: "a_stranger_scans",
        preemptions: Some(3),
        floor: 10_000,
        controls: &[Site::QsbrScanOrder, Site::QsbrScanFence],
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
        let scanner = thread::spawn(move || {
            let goal = collector.advance();
            let _ = collector.poll(goal);
        });
        linked.unlink();
        let goal = collector.advance();
        if collector.reached(goal) {
            linked.free();
        }
        scanner.join().unwrap();
        reader.join().unwrap();
        world.free();
    });
}
