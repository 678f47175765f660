//! Two reclaimers, up to 3 preemptions: what one scan has seen of a reader carries over to the other reclaimer's free.
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

#[test]
fn a_free_may_rest_on_another_scan() {
    let model = Model {
        name: "a_free_may_rest_on_another_scan",
        preemptions: Some(3),
        floor: 100_000,
        controls: &[Site::QsbrRaise, Site::QsbrReached, Site::QsbrOutrun, Site::QsbrDetach],
    };
    model.check(|| {
        let world = Leak::new((Shared::new(), Linked::new()));
        let (shared, linked) = world.get();
        let participant = shared.register().unwrap();
        participant.attach();
        // The read sequence stays behind, so that a scan that still sees the reader raises it too, and may lose.
        shared.advance();
        participant.quiescent_state();
        let reader = thread::spawn(move || {
            linked.read();
            participant.detach();
        });
        // Has nothing to free; what the one below frees may rest on this one's scan alone.
        let other = thread::spawn(move || shared.poll(shared.advance()));
        linked.unlink();
        let goal = shared.advance();
        if shared.poll(goal) {
            linked.free();
        }
        other.join().unwrap();
        reader.join().unwrap();
        assert!(shared.poll(shared.advance()), "everybody has left");
        world.free();
    });
}
