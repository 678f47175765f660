//! Some keeper is awake while memory waits to be given back.

use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;
use pymem_sync::sync::Site;
use pymem_sync::{IdleUnits, Keeper};

use crate::model::{Leak, Model};

/// The keeper goes to sleep while a unit is offered.
#[test]
fn nothing_waits_without_a_keeper() {
    let model = Model {
        name: "nothing_waits_without_a_keeper",
        preemptions: None,
        floor: 10_000,
        controls: &[Site::IdleOfferFence, Site::IdleRestFence],
    };
    model.check(|| {
        let shared = Leak::new((IdleUnits::new(), Keeper::new()));
        let (units, keeper) = shared.get();
        assert!(keeper.wake());
        let other = thread::spawn(move || keeper.rest(|| [units]));
        let is_seen = units.offer(1, keeper);
        let is_started = !is_seen && keeper.wake();
        let has_ended = other.join().unwrap();
        assert!(keeper.is_awake(), "memory waits and nobody is awake");
        assert_eq!(is_started, has_ended);
        shared.free();
    });
}

/// The keeper goes to sleep while a unit is offered of a word that was not in use before.
#[test]
fn no_new_word_waits_without_a_keeper() {
    let model = Model {
        name: "no_new_word_waits_without_a_keeper",
        preemptions: None,
        floor: 10_000,
        controls: &[Site::IdleOfferFence, Site::IdleRestFence, Site::IdleRestOrder],
    };
    model.check(|| {
        let words = [IdleUnits::new(), IdleUnits::new()];
        let shared = Leak::new((words, AtomicUsize::new(1), Keeper::new()));
        let (words, in_use, keeper) = shared.get();
        assert!(keeper.wake());
        let other = thread::spawn(move || keeper.rest(|| &words[..in_use.load(Ordering::Relaxed)]));
        in_use.fetch_max(2, Ordering::Relaxed);
        let is_seen = words[1].offer(1, keeper);
        let is_started = !is_seen && keeper.wake();
        let has_ended = other.join().unwrap();
        assert!(keeper.is_awake(), "memory waits and nobody is awake");
        assert_eq!(is_started, has_ended);
        shared.free();
    });
}
