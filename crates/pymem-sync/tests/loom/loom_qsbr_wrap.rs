//! The sequence wraps round: a reader from before the wrap is not passed by a goal after it.

use loom::thread;
use pymem_sync::qsbr::{Collector, Participant, Seq};
use pymem_sync::sync::Site;

use crate::cell::Linked;
use crate::model::{Leak, Model};

#[test]
fn a_goal_after_the_wrap_waits_for_a_reader_from_before() {
    let model = Model {
        name: "a_goal_after_the_wrap_waits_for_a_reader_from_before",
        preemptions: None,
        floor: 2_000,
        controls: &[Site::QsbrWrap, Site::QsbrQuiescent],
    };
    model.check(|| {
        let world = Leak::new((Collector::starting_at(Seq::new(u64::MAX)), Linked::new()));
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
        assert_eq!(goal.seq(), Seq::FIRST);
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
