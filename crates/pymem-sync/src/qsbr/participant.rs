//! Owns [`Participant`]: a reader's side, attach, detach and quiescent states.

use core::cell::Cell;
use core::fmt;
use core::marker::PhantomData;
use std::thread;

use super::collector::Collector;
use super::slots::{RegisterError, Slot};
use crate::sync::{Ordering, Site, chosen, fence, ordering};

/// A thread that may read what others retire.
///
/// While attached it may follow links to shared memory and keep the references until its next quiescent state or detach; a
/// detached participant holds none and is waited for by nobody. It can move to another thread (`Send`), but is used by one
/// thread at a time.
///
/// Dropping it gives the slot back. Dropping it while it is attached is an error, reported by a panic in debug builds; the
/// slot goes offline first in any case.
pub struct Participant<'s> {
    collector: &'s Collector,
    slot: &'s Slot,
    id: u64,
    // One thread at a time.
    _single: PhantomData<Cell<()>>,
}

impl<'s> Participant<'s> {
    /// Registers the calling thread with `collector`, detached; no other thread is stopped or waited for.
    ///
    /// A slot of a dropped participant is used again; costs a look at every slot.
    ///
    /// # Errors
    ///
    /// [`RegisterError`] if there is no memory for more slots.
    pub fn register(collector: &'s Collector) -> Result<Self, RegisterError> {
        let (slot, id) = collector.own_slot()?;
        Ok(Self { collector, slot, id, _single: PhantomData })
    }

    /// Takes every slot but the survivor's from the threads that a fork left behind, in the child.
    ///
    /// Goals are reachable again: dead threads hold nothing back. Dropping a dead thread's participant afterwards does
    /// nothing; any other use of it is an error.
    ///
    /// # Safety
    ///
    /// 1. The process was just forked, and the calling thread is its only one.
    /// 2. `survivor`, if any, is the calling thread's participant of `collector`.
    /// 3. No participant of `collector` but the survivor is used again, except to drop it.
    pub unsafe fn after_fork_in_child(collector: &Collector, survivor: Option<&Self>) {
        // SAFETY: (1) is ours.
        unsafe { collector.keep_slot(survivor.map(|survivor| survivor.slot)) };
    }

    /// Whether the participant is attached.
    #[inline]
    #[must_use]
    pub fn is_attached(&self) -> bool {
        // Relaxed: only this participant writes its slot.
        self.slot.seq.load(Ordering::Relaxed) != 0
    }

    /// Comes online: from here on goals wait for this participant.
    ///
    /// # Panics
    ///
    /// In debug builds, if it is attached already; in release builds that changes nothing.
    pub fn attach(&self) {
        if self.is_attached() {
            debug_assert!(false, "attach() while attached; call detach() first");
            return;
        }
        self.see(self.collector.current().get());
        // Two cases against the fence of a scan: ours comes first, and the scan sees our slot; or the scan's comes first, and
        // what we read from here on is what the reclaimer unlinked, without the retired memory. See `loom_qsbr_attach`.
        fence(Site::QsbrAttachFence);
    }

    /// Reports that this thread holds no reference to shared memory from before this call.
    ///
    /// Two loads while nobody has advanced. Does nothing while detached.
    #[inline]
    pub fn quiescent_state(&self) {
        let now = self.collector.current().get();
        // Relaxed: only this participant writes its slot.
        let seen = self.slot.seq.load(Ordering::Relaxed);
        if seen != now && seen != 0 {
            self.see_later(now);
        }
    }

    /// Somebody has advanced since the last quiescent state.
    #[cold]
    fn see_later(&self, now: u64) {
        self.see(now);
        // For deferred goals: comes after the fence of a `next` that read the sequence before `now`, so that what we read
        // from here on is what its caller has unlinked. See `loom_qsbr_deferred`.
        fence(Site::QsbrQuiescentFence);
    }

    fn see(&self, seq: u64) {
        // Release: pairs with the Acquire of a scan: our reads from before happen before the free. See `loom_qsbr_quiescent`.
        self.slot.seq.store(seq, ordering(Site::QsbrQuiescent, Ordering::Release));
    }

    /// Goes offline: this thread holds no reference to shared memory, and nobody waits for it.
    ///
    /// Does nothing while detached.
    pub fn detach(&self) {
        // Release: pairs with the Acquire of a scan: our reads from before happen before the free. See `loom_qsbr_detach`.
        self.slot.seq.store(0, ordering(Site::QsbrDetach, Ordering::Release));
    }
}

impl Drop for Participant<'_> {
    fn drop(&mut self) {
        // After a fork the slot may belong to somebody else.
        if !self.slot.is_owned_by(self.id) {
            return;
        }
        let attached = self.is_attached();
        // A slot is free only when it is offline: its last value would hold back every goal. See `loom_qsbr_register`.
        if chosen(Site::QsbrLeave, true, false) {
            self.detach();
        }
        self.slot.disown();
        debug_assert!(
            !attached || thread::panicking(),
            "a participant was dropped while attached; call detach() before the thread ends"
        );
    }
}

impl fmt::Debug for Participant<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Participant")
            .field("id", &self.id)
            .field("is_attached", &self.is_attached())
            .finish()
    }
}
