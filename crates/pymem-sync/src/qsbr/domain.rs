//! Owns [`Domain`]: a collector, and the queues that exited threads have abandoned until somebody reclaims their items.

use core::mem::ManuallyDrop;
use core::{fmt, ptr};

use crossbeam_utils::CachePadded;

use super::collector::Collector;
use super::queue::{Queue, Reclaim};
use super::seq::Seq;
use crate::sync::{AtomicPtr, Ordering, Site, Witness, chosen, const_in_real, ordering};

/// What the threads that retire and read items of one kind share; an interpreter has one.
///
/// Its [`Collector`] says when an item can go. A thread's [`Delayed`](super::Delayed) queue that is dropped with items in
/// it is abandoned to the domain, without a lock and without memory, and every other queue looks here when it processes
/// itself. Dropping the domain, at interpreter end, reclaims everything that is left.
pub struct Domain<T: Reclaim> {
    collector: Collector,
    /// The newest abandoned queue; each owns the way to the one below.
    // Padded: exiting threads write here.
    abandoned: CachePadded<AtomicPtr<Queue<T>>>,
}

impl<T: Reclaim> Domain<T> {
    const_in_real! {
        /// A domain without threads.
        #[must_use]
        pub const fn new() -> Self {
            Self::starting_at(Seq::FIRST)
        }

        /// A domain whose sequence starts at `seq`, so that tests meet the wrap.
        #[doc(hidden)]
        #[must_use]
        pub const fn starting_at(seq: Seq) -> Self {
            Self {
                collector: Collector::starting_at(seq),
                abandoned: CachePadded::new(AtomicPtr::new(ptr::null_mut())),
            }
        }
    }

    /// What says when the domain's items can go.
    #[inline]
    #[must_use]
    pub const fn collector(&self) -> &Collector {
        &self.collector
    }

    /// Whether an abandoned queue waited a moment ago; one relaxed load.
    #[inline]
    #[must_use]
    pub fn has_abandoned(&self) -> bool {
        !self.abandoned.load(Ordering::Relaxed).is_null()
    }

    /// Leaves a queue to whoever comes next; an empty one goes.
    pub(super) fn abandon(&self, mut queue: Box<Queue<T>>) {
        if queue.len() == 0 {
            return;
        }
        queue.handed_over = Witness::new();
        let queue = Box::into_raw(queue);
        // Release: pairs with the Acquire of `take`, which thereby sees the items; a queue on top of another continues its
        // release sequence. See `loom_qsbr_hand_over`.
        let release = ordering(Site::QueueGive, Ordering::Release);
        let mut head = self.abandoned.load(Ordering::Relaxed);
        loop {
            // SAFETY: from `into_raw` above, and nobody else's until the exchange below succeeds.
            unsafe { (*queue).below = head };
            match self.abandoned.compare_exchange_weak(head, queue, release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// Takes every abandoned queue; each is handed to one taker.
    fn take(&self) -> Taken<'_, T> {
        if !self.has_abandoned() {
            return Taken { domain: self, next: ptr::null_mut() };
        }
        // Acquire: pairs with the Release of `abandon`; see `loom_qsbr_hand_over`.
        let acquire = ordering(Site::QueueTake, Ordering::Acquire);
        Taken { domain: self, next: self.abandoned.swap(ptr::null_mut(), acquire) }
    }

    /// Reclaims the abandoned items whose goals are reached, and returns how many; the others go back.
    ///
    /// Any thread may call it at any time.
    pub fn process(&self) -> usize {
        let mut reclaimed = 0;
        for mut taken in self.take() {
            let queue = &mut taken.queue;
            if queue.first_goal().is_none() && queue.is_open() {
                // Its thread had no memory for a batch, which needs none by now.
                queue.close(self.collector.advance());
            }
            while let Some(goal) = queue.first_goal() {
                if !self.collector.poll(goal) {
                    break;
                }
                while let Some(item) = queue.pop(goal) {
                    item.reclaim();
                    reclaimed += 1;
                }
            }
        }
        reclaimed
    }

    /// Reclaims every abandoned item whatever its goal, and returns how many.
    ///
    /// # Safety
    ///
    /// 1. No reader holds a reference to a retired item: the world is stopped at quiescent states, or at its end.
    pub unsafe fn reclaim_all(&self) -> usize {
        let mut reclaimed = 0;
        for mut taken in self.take() {
            while let Some(item) = taken.queue.pop_any() {
                item.reclaim();
                reclaimed += 1;
            }
        }
        reclaimed
    }
}

impl<T: Reclaim> Drop for Domain<T> {
    fn drop(&mut self) {
        // Again and again: an item's reclaim may abandon more.
        while self.has_abandoned() {
            // SAFETY: (1) is what `Delayed::retire` asks for the time of this drop (3).
            unsafe { self.reclaim_all() };
        }
    }
}

impl<T: Reclaim> Default for Domain<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Reclaim> fmt::Debug for Domain<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Domain")
            .field("collector", &self.collector)
            .field("has_abandoned", &self.has_abandoned())
            .finish()
    }
}

/// Queues that this taker alone has; those that it does not get to go back, also when an item unwinds.
struct Taken<'d, T: Reclaim> {
    domain: &'d Domain<T>,
    next: *mut Queue<T>,
}

impl<'d, T: Reclaim> Iterator for Taken<'d, T> {
    type Item = TakenQueue<'d, T>;

    fn next(&mut self) -> Option<TakenQueue<'d, T>> {
        if self.next.is_null() {
            return None;
        }
        // SAFETY: every queue in the list comes from `into_raw` in `abandon`, and the swap in `take` has handed it to this
        // taker alone.
        let queue = unsafe { Box::from_raw(self.next) };
        queue.handed_over.see();
        self.next = queue.below;
        Some(TakenQueue { domain: self.domain, queue: ManuallyDrop::new(queue) })
    }
}

impl<T: Reclaim> Drop for Taken<'_, T> {
    fn drop(&mut self) {
        self.for_each(drop);
    }
}

/// One of them; what is left in it goes back, also when an item unwinds.
struct TakenQueue<'d, T: Reclaim> {
    domain: &'d Domain<T>,
    /// Taken out by the drop alone.
    queue: ManuallyDrop<Box<Queue<T>>>,
}

impl<T: Reclaim> Drop for TakenQueue<'_, T> {
    fn drop(&mut self) {
        // SAFETY: the queue is never used again: this is the drop.
        let queue = unsafe { ManuallyDrop::take(&mut self.queue) };
        if chosen(Site::QueueReturn, true, false) {
            self.domain.abandon(queue);
        }
    }
}
