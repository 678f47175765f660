//! Owns [`Queue`]: retired items in the order of their goals. It belongs to one thread at a time; no atomics here.

use core::ptr;
use std::collections::VecDeque;

use super::seq::Goal;
use crate::sync::{Witness, const_in_real};

/// More room than this is given back once the queue is empty.
const KEPT_ITEMS: usize = 1024;

/// Something retired, which is to be freed later: a block, an object reference.
pub trait Reclaim: Send {
    /// The memory that reclaiming gives back, in bytes; always the same for one item. 0 if unknown.
    fn bytes(&self) -> usize {
        0
    }

    /// Frees it.
    ///
    /// May retire further items into the very queue that it came from; those wait for goals of their own. If it unwinds, the
    /// items behind it stay where they are, for the next call.
    fn reclaim(self);
}

/// How much waits in a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// Retired items that have not been reclaimed yet.
    pub items: usize,
    /// What [`Reclaim::bytes`] says of them, in all.
    pub bytes: usize,
}

/// The next `items` items wait for `goal`.
struct Batch {
    goal: Goal,
    items: usize,
}

/// Retired items, oldest first: those of the batches, then the open ones, which have no goal yet.
pub(super) struct Queue<T> {
    items: VecDeque<T>,
    /// (Q1) Goals never fall from front to back. (Q2) No batch is empty.
    batches: VecDeque<Batch>,
    /// The newest items, in no batch. (Q3) The batches' items and these are all items.
    open: usize,
    /// The queue below in a list of abandoned queues.
    pub(super) below: *mut Self,
    /// Renewed by each hand-over: stands for all that its giver wrote in the queue.
    pub(super) handed_over: Witness,
}

// SAFETY: a queue owns its items; the link belongs to the list that the queue is in, and is used by its owner alone.
unsafe impl<T: Send> Send for Queue<T> {}

impl<T> Queue<T> {
    const_in_real! {
        pub(super) const fn new() -> Self {
            Self {
                items: VecDeque::new(),
                batches: VecDeque::new(),
                open: 0,
                below: ptr::null_mut(),
                handed_over: Witness::new(),
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether some items have no goal yet.
    pub(super) const fn is_open(&self) -> bool {
        self.open != 0
    }

    /// Appends an open item; gives it back if there is no memory.
    #[inline]
    pub(super) fn push(&mut self, item: T) -> Result<(), T> {
        if self.items.len() == self.items.capacity() && self.items.try_reserve(1).is_err() {
            return Err(item);
        }
        self.items.push_back(item);
        self.open += 1;
        Ok(())
    }

    /// Gives the open items a goal, which was made after the newest of them was pushed.
    ///
    /// Without memory for one more batch they join the last one, whose items then wait for the later goal too; without
    /// any batch they stay open.
    pub(super) fn close(&mut self, goal: Goal) {
        if self.open == 0 {
            return;
        }
        let has_room = self.batches.try_reserve(1).is_ok();
        match self.batches.back_mut() {
            Some(last) if last.goal == goal || !has_room => {
                last.goal = goal;
                last.items += self.open;
            }
            _ if has_room => self.batches.push_back(Batch { goal, items: self.open }),
            _ => return,
        }
        self.open = 0;
    }

    /// The goal of the oldest item, if it has one.
    #[inline]
    pub(super) fn first_goal(&self) -> Option<Goal> {
        self.batches.front().map(|batch| batch.goal)
    }

    /// The goal that covers every closed item.
    pub(super) fn last_goal(&self) -> Option<Goal> {
        self.batches.back().map(|batch| batch.goal)
    }

    /// Takes the oldest item if it waits for `goal`.
    #[inline]
    pub(super) fn pop(&mut self, goal: Goal) -> Option<T> {
        let first = self.batches.front_mut()?;
        if first.goal != goal {
            return None;
        }
        first.items -= 1;
        if first.items == 0 {
            self.batches.pop_front();
        }
        self.items.pop_front()
    }

    /// Takes the oldest item, whatever it waits for.
    pub(super) fn pop_any(&mut self) -> Option<T> {
        match self.first_goal() {
            Some(goal) => self.pop(goal),
            None => {
                let item = self.items.pop_front()?;
                self.open -= 1;
                Some(item)
            }
        }
    }

    /// Gives back the memory of a burst once the queue is empty.
    pub(super) fn shrink(&mut self) {
        if self.items.is_empty() && self.items.capacity() > KEPT_ITEMS {
            self.items = VecDeque::new();
        }
        if self.batches.is_empty() && self.batches.capacity() > KEPT_ITEMS {
            self.batches = VecDeque::new();
        }
    }

    /// Asserts (Q1) to (Q3).
    #[cfg(test)]
    fn check_invariants(&self) {
        let goals: Vec<_> = self.batches.iter().map(|batch| batch.goal.seq()).collect();
        assert!(goals.windows(2).all(|pair| !pair[1].is_before(pair[0])), "Q1: {goals:?}");
        assert!(self.batches.iter().all(|batch| batch.items > 0), "Q2");
        let closed: usize = self.batches.iter().map(|batch| batch.items).sum();
        assert_eq!(closed + self.open, self.items.len(), "Q3");
    }
}

#[cfg(test)]
mod tests {
    use super::super::seq::Seq;
    use super::*;

    fn goal(seq: u64) -> Goal {
        Goal::at(Seq::new(seq))
    }

    #[test]
    fn items_come_out_in_order_and_only_for_their_goal() {
        let mut queue = Queue::new();
        for item in 0..3 {
            queue.push(item).unwrap();
        }
        queue.close(goal(3));
        queue.push(3).unwrap();
        queue.close(goal(3));
        queue.push(4).unwrap();
        queue.close(goal(5));
        assert_eq!(queue.batches.len(), 2, "items with one goal are one batch");
        queue.push(5).unwrap();
        queue.check_invariants();
        assert_eq!(queue.pop(goal(5)), None, "the first batch waits for 3");
        for item in 0..4 {
            assert_eq!(queue.pop(goal(3)), Some(item));
            queue.check_invariants();
        }
        assert_eq!(queue.pop(goal(3)), None);
        assert_eq!(queue.first_goal(), Some(goal(5)));
        assert_eq!(queue.pop_any(), Some(4));
        assert!(queue.is_open());
        assert_eq!(queue.pop_any(), Some(5), "an open item");
        assert_eq!(queue.pop_any(), None);
        assert!(!queue.is_open());
        queue.check_invariants();
    }

    #[test]
    fn closing_nothing_makes_no_batch() {
        let mut queue = Queue::<u8>::new();
        queue.close(goal(3));
        assert_eq!(queue.first_goal(), None);
        queue.check_invariants();
    }

    #[test]
    fn an_empty_queue_gives_back_the_memory_of_a_burst() {
        let mut queue = Queue::new();
        for item in 0..2 * KEPT_ITEMS {
            queue.push(item).unwrap();
        }
        queue.shrink();
        assert!(queue.items.capacity() >= 2 * KEPT_ITEMS, "not while items wait");
        while queue.pop_any().is_some() {}
        queue.shrink();
        assert_eq!(queue.items.capacity(), 0);
    }
}
