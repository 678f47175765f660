//! Attach racing the scan: either the scan sees the reader, or the reader does not see what was unlinked.

use loom::thread;
use pymem_sync::qsbr::{Collector, Participant};
use pymem_sync::sync::Site;

use crate::cell::Linked;
use crate::model::{Leak, Model};

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
        let goal = linked.reclaim(collector, Collector::advance);
        reader.join().unwrap();
        assert!(collector.poll(goal), "everybody has left");
        world.free();
    });
}
