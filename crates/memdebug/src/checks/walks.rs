//! Owns what goes over all blocks that the checks know: verifying them, and emptying the quarantine.

use core::ptr::{self, NonNull};

use malloc_api::Malloc;

use crate::checks::registry::{Entry, LIVE};
use crate::hooks::DebugHooks;
use crate::report::violation::Call;

impl<A: Malloc> DebugHooks<A> {
    /// Gives all blocks in the quarantine back to the allocator, each verified first; gives how many there were.
    ///
    /// Where the allocator below needs a lock that its callers hold, so does this.
    pub fn release_quarantine(&self) -> usize {
        let Some(state) = self.checked.state() else {
            return 0;
        };
        let Some(quarantine) = &state.quarantine else {
            return 0;
        };
        let mut count = 0;
        while let Some(held) = quarantine.pop() {
            self.leave(state, quarantine, &held);
            count += 1;
        }
        count
    }

    /// Bytes and blocks that the quarantine holds.
    #[must_use]
    pub fn quarantined(&self) -> (usize, usize) {
        let quarantine = self.checked.state().and_then(|state| state.quarantine.as_ref());
        quarantine.map_or((0, 0), |quarantine| quarantine.held())
    }

    /// Verifies all blocks that can be found: those in the quarantine, and with a registry the live ones of this domain.
    /// Each violation goes to the handler; gives how many there were.
    ///
    /// A block that another thread is writing past the end of right now may be missed; no intact block is reported.
    pub fn check_all(&self) -> usize {
        let Some(state) = self.checked.state() else {
            return 0;
        };
        let mut found = state.quarantine.as_ref().map_or(0, |quarantine| quarantine.verify_all());
        if !state.registry {
            return found;
        }
        // The handler runs without the registry's lock, so that one violation a walk is carried out of it.
        let mut after = 0;
        while let Some(entry) = self.next_damaged(after) {
            after = entry.address;
            if let Some(p) = NonNull::new(ptr::with_exposed_provenance_mut(entry.address)) {
                self.report(state, p, Call::Check, Some(entry));
                found += 1;
            }
        }
        found
    }

    /// The damaged live block of this domain with the lowest address above `after`.
    fn next_damaged(&self, after: usize) -> Option<Entry> {
        let mut lowest: Option<Entry> = None;
        LIVE.for_each(|entry| {
            let candidate = entry.domain == self.domain
                && !entry.freed
                && entry.address > after
                && lowest.is_none_or(|l| entry.address < l.address);
            let p = NonNull::new(ptr::with_exposed_provenance_mut(entry.address));
            if candidate && p.and_then(|p| self.intact_size(p)) != Some(entry.size) {
                lowest = Some(entry);
            }
        });
        lowest
    }
}
