//! An exiting thread's items are reclaimed exactly once, whoever finds them, and not before the readers have left.

use std::sync::atomic::{AtomicUsize, Ordering};

use loom::thread;
use pymem_sync::qsbr::{Delayed, Domain, Limits, Participant, Reclaim};
use pymem_sync::sync::Site;

use crate::cell::Linked;
use crate::model::{Leak, Model, Plain};

struct Item {
    world: &'static World,
    /// Written by the thread that retires, read by the one that reclaims.
    written: Plain<bool>,
}

struct World {
    domain: Domain<Item>,
    linked: Linked,
    /// Outside the model.
    reclaimed: AtomicUsize,
}

impl Reclaim for Item {
    fn reclaim(self) {
        assert!(self.written.read());
        self.world.linked.free();
        self.world.reclaimed.fetch_add(1, Ordering::Relaxed);
    }
}

fn world() -> Leak<World> {
    Leak::new(World {
        domain: Domain::new(),
        linked: Linked::new(),
        reclaimed: AtomicUsize::new(0),
    })
}

/// Unlinks the block, retires it and exits.
fn retire_and_exit(world: &'static World) {
    let delayed = Delayed::new(&world.domain, Limits::default()).unwrap();
    world.linked.unlink();
    let item = Item { world, written: Plain::new(false) };
    item.written.write(true);
    // SAFETY: (1) unlinked; (2) the model's reader is a participant; (3) it has been joined by then.
    let queued = unsafe { delayed.retire(item) };
    assert!(queued.is_ok());
}

fn settle(world: Leak<World>) {
    let World { domain, reclaimed, .. } = world.get();
    domain.process();
    assert!(!domain.has_abandoned(), "everybody has left");
    assert_eq!(reclaimed.load(Ordering::Relaxed), 1, "lost or reclaimed twice");
    world.free();
}

#[test]
fn two_processors_reclaim_once() {
    let model = Model {
        name: "two_processors_reclaim_once",
        preemptions: None,
        floor: 1_000,
        controls: &[Site::QueueGive, Site::QueueTake, Site::QueueReturn],
    };
    model.check(|| {
        let world = world();
        let shared = world.get();
        let reader = Participant::register(shared.domain.collector()).unwrap();
        reader.attach();
        let leaver = thread::spawn(move || retire_and_exit(shared));
        shared.linked.read();
        shared.domain.process();
        reader.detach();
        shared.domain.process();
        leaver.join().unwrap();
        drop(reader);
        settle(world);
    });
}

#[test]
fn a_third_thread_reclaims_what_the_reader_left() {
    let model = Model {
        name: "a_third_thread_reclaims_what_the_reader_left",
        preemptions: None,
        floor: 10_000,
        controls: &[Site::QueueGive, Site::QueueTake, Site::QsbrDetach],
    };
    model.check(|| {
        let world = world();
        let shared = world.get();
        let participant = Participant::register(shared.domain.collector()).unwrap();
        participant.attach();
        let reader = thread::spawn(move || {
            shared.linked.read();
            participant.detach();
        });
        let leaver = thread::spawn(move || retire_and_exit(shared));
        shared.domain.process();
        leaver.join().unwrap();
        reader.join().unwrap();
        settle(world);
    });
}
