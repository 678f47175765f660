//! Some keeper is awake while memory waits to be given back.

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
        let other = thread::spawn(move || keeper.rest([units]));
        let is_seen = units.offer(1, keeper);
        let is_started = !is_seen && keeper.wake();
        let has_ended = other.join().unwrap();
        assert!(keeper.is_awake(), "memory waits and nobody is awake");
        assert_eq!(is_started, has_ended);
        shared.free();
    });
}
