//! A reader that attached before the advance is never passed: a goal waits for its quiescent state, and its reads from
//! before come before the free.

use loom::thread;
use pymem_sync::qsbr::{Collector, Participant};
use pymem_sync::sync::Site;

use crate::cell::Linked;
use crate::model::{Leak, Model};

#[test]
fn a_reader_from_before_the_advance_is_not_passed() {
    let model = Model {
        name: "a_reader_from_before_the_advance_is_not_passed",
        preemptions: None,
        floor: 2_000,
        controls: &[Site::QsbrQuiescent, Site::QsbrScan, Site::QsbrAdvance],
    };
    model.check(|| {
        let world = Leak::new((Collector::new(), Linked::new()));
        let (collector, linked) = world.get();
        let participant = Participant::register(collector).unwrap();
        participant.attach();
        let reader = thread::spawn(move || {
            linked.read();
            participant.quiescent_state();
            linked.read();
            participant
        });
        linked.unlink();
        let goal = collector.advance();
        if collector.poll(goal) {
            linked.free();
        }
        let participant = reader.join().unwrap();
        participant.quiescent_state();
        assert!(collector.poll(goal), "the last reader has been quiescent");
        participant.detach();
        drop(participant);
        world.free();
    });
}
