//! A link to one of two blocks, which a reclaimer moves from the old one to the new one.
#![allow(dead_code, reason = "each model uses what it needs")]

use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;
use pymem_sync::qsbr::{Collector, Goal, Participant};

use crate::model::{Leak, Plain};

pub(crate) struct Linked {
    link: AtomicUsize,
    blocks: [Plain<u32>; 2],
}

impl Linked {
    pub(crate) fn new() -> Self {
        Self { link: AtomicUsize::new(0), blocks: [Plain::new(1), Plain::new(1)] }
    }

    /// What a reader does between two quiescent states: follows the link and touches the block.
    pub(crate) fn read(&self) {
        let number = self.link.load(Ordering::Acquire);
        assert_eq!(self.blocks[number].read(), 1, "read after free");
    }

    /// Makes the old block unreachable for new readers.
    pub(crate) fn unlink(&self) {
        self.link.store(1, Ordering::Release);
    }

    /// What a reclaimer does: unlinks the old block, takes a goal, and frees the block if the goal is reached.
    pub(crate) fn reclaim(
        &self,
        collector: &Collector,
        goal: impl FnOnce(&Collector) -> Goal,
    ) -> Goal {
        self.unlink();
        let goal = goal(collector);
        if collector.poll(goal) {
            self.free();
        }
        goal
    }

    /// Frees the old block: races with every read of it that does not come before.
    pub(crate) fn free(&self) {
        self.blocks[0].write(0);
    }
}

/// A reclaimer beside a reader that attached before it, is quiescent once and reads again: it waits for the reader. Its goal.
pub(crate) fn reclaim_beside_a_reader(collector: Collector) -> Goal {
    let world = Leak::new((collector, Linked::new()));
    let (collector, linked) = world.get();
    let participant = Participant::register(collector).unwrap();
    participant.attach();
    let reader = thread::spawn(move || {
        linked.read();
        participant.quiescent_state();
        linked.read();
        participant
    });
    let goal = linked.reclaim(collector, Collector::advance);
    let participant = reader.join().unwrap();
    participant.quiescent_state();
    assert!(collector.poll(goal), "the last reader has been quiescent");
    participant.detach();
    drop(participant);
    world.free();
    goal
}
