//! Slots are used again: the next owner finds its slot offline, and an unused slot holds nothing back.

use loom::thread;
use pymem_sync::qsbr::{Collector, Participant};
use pymem_sync::sync::Site;

use crate::model::{Leak, Model};

#[test]
fn a_slot_is_offline_for_its_next_owner() {
    let model = Model {
        name: "a_slot_is_offline_for_its_next_owner",
        preemptions: None,
        floor: 2_000,
        controls: &[Site::QsbrOwn, Site::QsbrDisown, Site::QsbrLeave],
    };
    model.check(|| {
        let world = Leak::new(Collector::new());
        let collector = world.get();
        let last = thread::spawn(move || {
            let participant = Participant::register(collector).unwrap();
            participant.attach();
            drop(participant);
        });
        let participant = Participant::register(collector).unwrap();
        assert!(!participant.is_attached(), "the slot still has the last owner's value");
        last.join().unwrap();
        assert!(collector.poll(collector.advance()), "a slot without an owner holds the goal back");
        drop(participant);
        world.free();
    });
}
