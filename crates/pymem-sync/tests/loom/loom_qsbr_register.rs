//! Registration racing a scan: a participant in a chunk that was just added is not missed, and is read only after it was
//! written; two registrations get two slots.

use loom::thread;
use pymem_sync::qsbr::{Collector, Participant};
use pymem_sync::sync::Site;

use crate::cell::Linked;
use crate::model::{Leak, Model};

#[test]
fn a_scan_sees_the_participant_of_a_new_chunk() {
    let model = Model {
        name: "a_scan_sees_the_participant_of_a_new_chunk",
        preemptions: None,
        floor: 10_000,
        controls: &[Site::QsbrGrow, Site::QsbrFollow, Site::QsbrAttachFence, Site::QsbrScanFence],
    };
    model.check(|| {
        let world = Leak::new((Collector::new(), Linked::new()));
        let (collector, linked) = world.get();
        // A chunk has one slot here, and this takes it.
        let first = Participant::register(collector).unwrap();
        let reader = thread::spawn(move || {
            let participant = Participant::register(collector).unwrap();
            participant.attach();
            linked.read();
            participant
        });
        let goal = linked.reclaim(collector, Collector::advance);
        let participant = reader.join().unwrap();
        participant.detach();
        assert!(collector.poll(goal), "everybody has left");
        assert_eq!(collector.slots(), 2);
        drop((first, participant));
        world.free();
    });
}

#[test]
fn two_registrations_that_both_grow_get_two_slots() {
    let model = Model {
        name: "two_registrations_that_both_grow_get_two_slots",
        preemptions: None,
        floor: 50_000,
        controls: &[Site::QsbrGrow, Site::QsbrFollow, Site::QsbrGrowLost],
    };
    model.check(|| {
        let world = Leak::new(Collector::new());
        let collector = world.get();
        let first = Participant::register(collector).unwrap();
        let register = move || Participant::register(collector).unwrap();
        let other = thread::spawn(register);
        let participants = [register(), other.join().unwrap()];
        participants.iter().for_each(Participant::attach);
        assert_eq!(collector.attached(), 2, "two participants share a slot");
        assert_eq!(collector.slots(), 3);
        for participant in participants {
            participant.detach();
        }
        drop(first);
        world.free();
    });
}
