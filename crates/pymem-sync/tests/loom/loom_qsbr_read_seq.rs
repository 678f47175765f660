//! The read sequence never goes back under racing polls: a goal that was reached stays reached.

use loom::thread;
use pymem_sync::qsbr::{Collector, Participant};
use pymem_sync::sync::Site;

use crate::model::{Leak, Model};

#[test]
fn a_reached_goal_stays_reached() {
    let model = Model {
        name: "a_reached_goal_stays_reached",
        preemptions: None,
        floor: 50_000,
        controls: &[Site::QsbrMonotonic],
    };
    model.check(|| {
        let world = Leak::new(Collector::new());
        let collector = world.get();
        let participant = Participant::register(collector).unwrap();
        participant.attach();
        let goal = collector.advance();
        // Its scan may see the participant, and then raise last.
        let other = thread::spawn(move || collector.poll(goal));
        participant.detach();
        assert!(collector.poll(goal), "everybody has left");
        other.join().unwrap();
        assert!(collector.reached(goal), "the read sequence went back");
        drop(participant);
        world.free();
    });
}
