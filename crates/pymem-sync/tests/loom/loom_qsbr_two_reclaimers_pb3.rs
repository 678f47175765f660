//! Two reclaimers, up to 3 preemptions: what one scan has seen of a reader carries over to the other reclaimer's free.

use loom::thread;
use pymem_sync::qsbr::{Collector, Participant};
use pymem_sync::sync::Site;

use crate::cell::Linked;
use crate::model::{Leak, Model};

#[test]
fn a_free_may_rest_on_another_scan() {
    let model = Model {
        name: "a_free_may_rest_on_another_scan",
        preemptions: Some(3),
        floor: 100_000,
        controls: &[Site::QsbrRaise, Site::QsbrReached, Site::QsbrOutrun, Site::QsbrDetach],
    };
    model.check(|| {
        let world = Leak::new((Collector::new(), Linked::new()));
        let (collector, linked) = world.get();
        let participant = Participant::register(collector).unwrap();
        participant.attach();
        // The read sequence stays behind, so that a scan that still sees the reader raises it too, and may lose.
        collector.advance();
        participant.quiescent_state();
        let reader = thread::spawn(move || {
            linked.read();
            participant.detach();
        });
        // Has nothing to free; what the one below frees may rest on this one's scan alone.
        let other = thread::spawn(move || collector.poll(collector.advance()));
        linked.reclaim(collector, Collector::advance);
        other.join().unwrap();
        reader.join().unwrap();
        assert!(collector.poll(collector.advance()), "everybody has left");
        world.free();
    });
}
