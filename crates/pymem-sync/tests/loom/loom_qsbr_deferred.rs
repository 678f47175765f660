//! A deferred goal is reached only after somebody has advanced, covers the unlink before it though its maker did not
//! advance, and never lies below an earlier goal.

use loom::thread;
use pymem_sync::qsbr::{Collector, Participant};
use pymem_sync::sync::Site;

use crate::cell::Linked;
use crate::model::{Leak, Model};

#[test]
fn an_advance_by_somebody_else_covers_the_unlink() {
    let model = Model {
        name: "an_advance_by_somebody_else_covers_the_unlink",
        preemptions: None,
        floor: 10_000,
        controls: &[Site::QsbrNextFence, Site::QsbrQuiescentFence, Site::QsbrNextStep],
    };
    model.check(|| {
        let world = Leak::new((Collector::new(), Linked::new()));
        let (collector, linked) = world.get();
        let participant = Participant::register(collector).unwrap();
        participant.attach();
        let reader = thread::spawn(move || {
            collector.advance();
            participant.quiescent_state();
            linked.read();
            participant
        });
        linked.reclaim(collector, Collector::next);
        let participant = reader.join().unwrap();
        participant.detach();
        drop(participant);
        world.free();
    });
}

#[test]
fn a_reader_that_attaches_after_the_advance_misses_nothing() {
    let model = Model {
        name: "a_reader_that_attaches_after_the_advance_misses_nothing",
        preemptions: None,
        floor: 10_000,
        controls: &[Site::QsbrNextFence, Site::QsbrAttachFence],
    };
    model.check(|| {
        let world = Leak::new((Collector::new(), Linked::new()));
        let (collector, linked) = world.get();
        let participant = Participant::register(collector).unwrap();
        let reader = thread::spawn(move || {
            collector.advance();
            participant.attach();
            linked.read();
            participant
        });
        linked.reclaim(collector, Collector::next);
        let participant = reader.join().unwrap();
        participant.detach();
        drop(participant);
        world.free();
    });
}

#[test]
fn a_deferred_goal_waits_for_an_advance_and_never_falls() {
    let model = Model {
        name: "a_deferred_goal_waits_for_an_advance_and_never_falls",
        preemptions: None,
        floor: 100,
        controls: &[Site::QsbrNextStep],
    };
    model.check(|| {
        let world = Leak::new(Collector::new());
        let collector = world.get();
        let other = thread::spawn(move || collector.advance());
        let (first, second, third) = (collector.next(), collector.advance(), collector.next());
        assert!(!second.seq().is_before(first.seq()), "an advance fell below a deferred goal");
        assert!(third.seq() != second.seq() && !third.seq().is_before(second.seq()));
        other.join().unwrap();
        let last = collector.next();
        assert!(!last.seq().is_before(third.seq()), "a deferred goal fell");
        assert!(!collector.poll(last), "reached without an advance");
        assert_eq!(collector.advance(), last);
        assert!(collector.poll(last));
        world.free();
    });
}
