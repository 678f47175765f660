//! Two reclaimers, up to 3 preemptions: the read sequence never goes back under racing polls, and what one scan has seen
//! carries over to the other reclaimer's free.
#![cfg(pymem_loom)]

#[path = "model/cell.rs"]
mod cell;
#[path = "model/mod.rs"]
mod model;

use cell::Linked;
use loom::thread;
use model::{Leak, Model};
use pymem_sync::qsbr::Shared;
use pymem_sync::sync::Site;

/// Unlinks, polls once and frees, and watches the read sequence.
fn reclaim(shared: &Shared, linked: &Linked) {
    let before = shared.read_seq();
    linked.unlink();
    let goal = shared.advance();
    if shared.poll(goal) {
        linked.free();
    }
    assert!(!shared.read_seq().is_before(before), "the read sequence went back");
}

#[test]
fn two_reclaimers_free_what_one_reader_has_left() {
    let model = Model {
        name: "two_reclaimers_free_what_one_reader_has_left",
        preemptions: Some(3),
        floor: 100_000,
        controls: &[Site::QsbrRaise, Site::QsbrReached, Site::QsbrMonotonic],
    };
    model.check(|| {
        let world = Leak::new((Shared::new(), [Linked::new(), Linked::new()]));
        let (shared, [first, second]) = world.get();
        let participant = shared.register().unwrap();
        participant.attach();
        let reader = thread::spawn(move || {
            first.read();
            second.read();
            participant.detach();
        });
        let other = thread::spawn(move || reclaim(shared, first));
        reclaim(shared, second);
        other.join().unwrap();
        reader.join().unwrap();
        assert!(shared.poll(shared.advance()), "everybody has left");
        world.free();
    });
}
