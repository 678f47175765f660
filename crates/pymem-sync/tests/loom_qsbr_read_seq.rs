//! The read sequence never goes back under racing polls: a goal that was reached stays reached.
#![cfg(pymem_loom)]

#[path = "model/mod.rs"]
mod model;

use loom::thread;
use model::{Leak, Model};
use pymem_sync::qsbr::Shared;
use pymem_sync::sync::Site;

#[test]
fn a_reached_goal_stays_reached() {
    let model = Model {
        name: "a_reached_goal_stays_reached",
        preemptions: None,
        floor: 50_000,
        controls: &[Site::QsbrMonotonic],
    };
    model.check(|| {
        let world = Leak::new(Shared::new());
        let shared = world.get();
        let participant = shared.register().unwrap();
        participant.attach();
        let goal = shared.advance();
        // Its scan may see the participant, and then raise last.
        let other = thread::spawn(move || shared.poll(goal));
        participant.detach();
        assert!(shared.poll(goal), "everybody has left");
        other.join().unwrap();
        assert!(shared.reached(goal), "the read sequence went back");
        drop(participant);
        world.free();
    });
}
