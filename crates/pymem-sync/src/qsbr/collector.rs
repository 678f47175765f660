//! Owns [`Collector`]: the write sequence, the read sequence, and the scan that lifts one to the other.

use core::{fmt, ptr};

use crossbeam_utils::CachePadded;

use super::seq::{Goal, Seq};
use super::slots::{RegisterError, Slot, Slots};
use crate::sync::{AtomicU64, Ordering, Site, chosen, const_in_real, fence, ordering};

/// Says when memory can go: what every [`Participant`](super::Participant) of one domain has seen.
///
/// About 1.5 KiB, with room for 8 participants; further ones are added in chunks of 8 that never move.
pub struct Collector {
    /// The write sequence: counts advances.
    // Padded: read at every quiescent state, written at every advance.
    write: CachePadded<AtomicU64>,
    /// The read sequence: every online participant has seen at least this. (S1) It never falls.
    // Padded: read by every reclaimer, written by scans.
    read: CachePadded<AtomicU64>,
    slots: Slots,
    /// The id of the next participant.
    next_id: AtomicU64,
}

impl Collector {
    const_in_real! {
        /// A collector without participants.
        #[must_use]
        pub const fn new() -> Self {
            Self::starting_at(Seq::FIRST)
        }

        /// A collector whose sequence starts at `seq`, so that tests meet the wrap.
        #[doc(hidden)]
        #[must_use]
        pub const fn starting_at(seq: Seq) -> Self {
            Self {
                write: CachePadded::new(AtomicU64::new(seq.get())),
                read: CachePadded::new(AtomicU64::new(seq.get())),
                slots: Slots::new(),
                next_id: AtomicU64::new(1),
            }
        }
    }

    /// A slot for a new participant, and the participant's id.
    pub(super) fn own_slot(&self) -> Result<(&Slot, u64), RegisterError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        Ok((self.slots.own(id)?, id))
    }

    /// Starts a new grace period; its goal is reached once every online participant has seen it.
    ///
    /// Call it after unlinking what is to be freed.
    pub fn advance(&self) -> Goal {
        // Release: pairs with the fences that follow a load in `current`: who has seen the new value sees the unlink before
        // it. Later advances continue the release sequence. See `loom_qsbr_quiescent`.
        let release = ordering(Site::QsbrAdvance, Ordering::Release);
        Goal::at(Seq::new(self.write.fetch_add(Seq::STEP, release)).next())
    }

    /// The goal of the next advance, without advancing: reached only after somebody has advanced.
    ///
    /// Cheaper than [`advance`](Self::advance) when several threads retire, as it writes nothing that others read. Call it
    /// after unlinking what is to be freed.
    #[must_use]
    pub fn next(&self) -> Goal {
        // Whoever advances later does not know of our unlink, so Release and Acquire on the counter do not carry it. Let W be
        // a reader's or scan's load that sees the advance: our load below came before that advance, so this fence comes
        // before the fence that follows W, and whatever is read after that fence sees the unlink. See `loom_qsbr_deferred`.
        fence(Site::QsbrNextFence);
        let now = Seq::new(self.write.load(Ordering::Relaxed));
        Goal::at(chosen(Site::QsbrNextStep, now.next(), now))
    }

    /// Whether `goal` is known to be reached; one load, no scan.
    #[inline]
    #[must_use]
    pub fn reached(&self, goal: Goal) -> bool {
        goal.is_reached_by(self.read_seq())
    }

    /// Whether `goal` is reached: asks what is known, then looks at every slot.
    ///
    /// True means that what was unlinked before the goal was made can be freed, by this thread. A caller that is attached
    /// and has reported no quiescent state since the goal holds it back itself.
    #[must_use]
    pub fn poll(&self, goal: Goal) -> bool {
        self.reached(goal) || goal.is_reached_by(self.scan())
    }

    /// The read sequence: what every online participant is known to have seen.
    #[must_use]
    pub fn read_seq(&self) -> Seq {
        // Acquire: pairs with the Release of `raise`: what readers did before the scan happens before the free. See
        // `loom_qsbr_two_reclaimers_pb3`.
        Seq::new(self.read.load(ordering(Site::QsbrReached, Ordering::Acquire)))
    }

    /// The write sequence, for participants and scans; orders no memory by itself.
    #[inline]
    #[must_use]
    pub fn current(&self) -> Seq {
        // Relaxed: participants and scans fence after it, and the fence pairs with the Release of `advance`.
        Seq::new(self.write.load(Ordering::Relaxed))
    }

    /// How many slots exist, in use or not; what a scan costs.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.slots.iter().count()
    }

    /// How many participants are attached at the moment; a hint.
    #[must_use]
    pub fn attached(&self) -> usize {
        self.slots.iter().filter(|slot| slot.seq.load(Ordering::Relaxed) != 0).count()
    }

    /// Lifts the read sequence to the oldest value that an online participant has seen, and returns it.
    fn scan(&self) -> Seq {
        // The write sequence first: it bounds the result, so every unlink that the result covers is known to us before the
        // fence. Then two cases for a reader: its fence (in `attach`) comes first, and we see its slot; or ours comes first,
        // and it sees the unlink. See `loom_qsbr_attach`, and `loom_qsbr_scan_pb3` for this order.
        let mut oldest = self.current();
        fence(Site::QsbrScanFence);
        if chosen(Site::QsbrScanOrder, false, true) {
            oldest = self.current();
        }
        // Acquire: pairs with the Release of `quiescent_state` and `detach`; see `loom_qsbr_quiescent`, `loom_qsbr_detach`.
        let acquire = ordering(Site::QsbrScan, Ordering::Acquire);
        let seen = self.slots.iter().filter_map(|slot| Seq::from_word(slot.seq.load(acquire)));
        seen.for_each(|seq| {
            if seq.is_before(oldest) {
                oldest = seq;
            }
        });
        self.raise(oldest)
    }

    /// Raises the read sequence to at least `seq` and returns it.
    fn raise(&self, seq: Seq) -> Seq {
        let mut read = self.read_seq();
        // Release: pairs with the Acquire of `read_seq`. Acquire on failure: somebody else's scan stands for ours. See
        // `loom_qsbr_two_reclaimers_pb3` for both, and `loom_qsbr_read_seq` for (S1).
        let release = ordering(Site::QsbrRaise, Ordering::Release);
        let acquire = ordering(Site::QsbrOutrun, Ordering::Acquire);
        while chosen(Site::QsbrMonotonic, read.is_before(seq), read != seq) {
            match self.read.compare_exchange_weak(read.get(), seq.get(), release, acquire) {
                Ok(_) => return seq,
                Err(now) => read = Seq::new(now),
            }
        }
        read
    }

    /// Takes every slot but the survivor's from the threads that a fork left behind, in the child.
    ///
    /// # Safety
    ///
    /// 1. The process was just forked, and the calling thread is its only one.
    pub(super) unsafe fn keep_slot(&self, survivor: Option<&Slot>) {
        for slot in self.slots.iter() {
            if !survivor.is_some_and(|survivor| ptr::eq(survivor, slot)) {
                // Relaxed: (1) nobody else reads it.
                slot.seq.store(0, Ordering::Relaxed);
                slot.disown();
            }
        }
    }
}

impl Default for Collector {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collector")
            .field("write", &self.current())
            .field("read", &self.read_seq())
            .field("attached", &self.attached())
            .field("slots", &self.slots())
            .finish()
    }
}
