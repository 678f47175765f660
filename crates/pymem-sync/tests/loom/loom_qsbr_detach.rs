//! Detach publishes its reads: what a reader read before it detached comes before the free.

use loom::thread;
use pymem_sync::qsbr::{Collector, Participant};
use pymem_sync::sync::Site;

use crate::cell::Linked;
use crate::model::{Leak, Model};

#[test]
fn the_reads_before_a_detach_come_before_the_free() {
    let model = Model {
        name: "the_reads_before_a_detach_come_before_the_free",
        preemptions: None,
        floor: 200,
        controls: &[Site::QsbrDetach, Site::QsbrScan],
    };
    model.check(|| {
        let world = Leak::new((Collector::new(), Linked::new()));
        let (collector, linked) = world.get();
        let participant = Participant::register(collector).unwrap();
        participant.attach();
        let reader = thread::spawn(move || {
            linked.read();
            participant.detach();
        });
        let goal = linked.reclaim(collector, Collector::advance);
        reader.join().unwrap();
        assert!(collector.poll(goal), "everybody has left");
        world.free();
    });
}
