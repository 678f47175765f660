//! Owns [`Orphans`]: queues whose threads have exited, until somebody reclaims their items.

use core::{fmt, ptr};

use crossbeam_utils::CachePadded;

use super::delayed::Reclaim;
use super::queue::Queue;
use super::shared::Shared;
use crate::sync::{AtomicPtr, Ordering, Site, Witness, chosen, const_in_real, ordering};

/// Retired items of threads that have exited; an interpreter has one.
///
/// Lock-free, and no memory is needed to hand a queue over. Every [`Delayed`](super::Delayed) looks here when it processes
/// its own queue. Dropping it, at interpreter end, reclaims everything that is left.
pub struct Orphans<T: Reclaim> {
    /// The newest queue; each owns the way to the one below.
    // Padded: exiting threads write here.
    head: CachePadded<AtomicPtr<Queue<T>>>,
}

impl<T: Reclaim> Orphans<T> {
    const_in_real! {
        /// No queues.
        #[must_use]
        pub const fn new() -> Self {
            Self { head: CachePadded::new(AtomicPtr::new(ptr::null_mut())) }
        }
    }

    /// Whether no queue waited a moment ago; one relaxed load.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.head.load(Ordering::Relaxed).is_null()
    }

    /// Leaves a queue to whoever comes next.
    pub(super) fn give(&self, mut queue: Box<Queue<T>>) {
        queue.handed_over = Witness::new();
        let queue = Box::into_raw(queue);
        // Release: pairs with the Acquire of `take`, which thereby sees the items; a give on top of another continues its
        // release sequence. See `loom_qsbr_hand_over`.
        let release = ordering(Site::OrphansGive, Ordering::Release);
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            // SAFETY: from `into_raw` above, and nobody else's until the exchange below succeeds.
            unsafe { (*queue).below = head };
            match self.head.compare_exchange_weak(head, queue, release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// Takes every queue off the list; each is handed to one taker.
    fn take(&self) -> Taken<T> {
        if self.is_empty() {
            return Taken { next: ptr::null_mut() };
        }
        // Acquire: pairs with the Release of `give`; see `loom_qsbr_hand_over`.
        let acquire = ordering(Site::OrphansTake, Ordering::Acquire);
        Taken { next: self.head.swap(ptr::null_mut(), acquire) }
    }

    /// Reclaims the items whose goals are reached, and returns how many; queues with others go back.
    ///
    /// Any thread may call it at any time; `shared` is the domain that the queues were made with.
    pub fn process(&self, shared: &Shared) -> usize {
        let mut reclaimed = 0;
        for mut queue in self.take() {
            if queue.first_goal().is_none() && queue.is_open() {
                // Its thread had no memory for a batch, which needs none by now.
                queue.close(shared.advance());
            }
            while let Some(goal) = queue.first_goal() {
                if !shared.poll(goal) {
                    break;
                }
                while let Some(item) = queue.pop(goal) {
                    item.reclaim();
                    reclaimed += 1;
                }
            }
            if queue.len() != 0 && chosen(Site::OrphansReturn, true, false) {
                self.give(queue);
            }
        }
        reclaimed
    }

    /// Reclaims every item whatever its goal, and returns how many.
    ///
    /// # Safety
    ///
    /// 1. No reader holds a reference to a retired item: the world is stopped at quiescent states, or at its end.
    pub unsafe fn reclaim_all(&self) -> usize {
        let mut reclaimed = 0;
        for mut queue in self.take() {
            while let Some(item) = queue.pop_any() {
                item.reclaim();
                reclaimed += 1;
            }
        }
        reclaimed
    }
}

impl<T: Reclaim> Drop for Orphans<T> {
    fn drop(&mut self) {
        // Again and again: an item's reclaim may hand more over.
        while !self.is_empty() {
            // SAFETY: (1) is what `Delayed::retire` asks for the time of this drop (3).
            unsafe { self.reclaim_all() };
        }
    }
}

impl<T: Reclaim> Default for Orphans<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Reclaim> fmt::Debug for Orphans<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Orphans").field("is_empty", &self.is_empty()).finish()
    }
}

/// Queues that this taker alone has.
struct Taken<T> {
    next: *mut Queue<T>,
}

impl<T> Iterator for Taken<T> {
    type Item = Box<Queue<T>>;

    fn next(&mut self) -> Option<Box<Queue<T>>> {
        if self.next.is_null() {
            return None;
        }
        // SAFETY: every queue in the list comes from `into_raw` in `give`, and the swap in `take` has handed it to this
        // taker alone.
        let queue = unsafe { Box::from_raw(self.next) };
        queue.handed_over.see();
        self.next = queue.below;
        Some(queue)
    }
}
