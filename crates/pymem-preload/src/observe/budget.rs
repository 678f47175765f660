//! Owns the bytes of the three domains together: how many are live, the most that were, and how many may be. Leaves which
//! blocks they are in to `counting.rs`, without which nothing is counted here.

use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Stands for no limit.
pub(crate) const UNLIMITED: usize = usize::MAX;

/// Bytes of live blocks.
#[derive(Debug)]
struct Budget {
    live: AtomicUsize,
    peak: AtomicUsize,
    limit: AtomicUsize,
}

static PROCESS: Budget = Budget::new();

/// Counts `size` bytes in place of `given`; `false`, with nothing changed, if the sum would grow above
/// the limit.
pub(crate) fn exchange(given: usize, size: usize) -> bool {
    PROCESS.exchange(given, size)
}

/// Takes an exchange back, whatever the limit.
pub(crate) fn exchange_back(given: usize, size: usize) {
    PROCESS.live.fetch_add(given.wrapping_sub(size), Relaxed);
}

/// Counts `size` bytes less.
pub(crate) fn give(size: usize) {
    PROCESS.live.fetch_sub(size, Relaxed);
}

/// Lets [`exchange`] count no more than `bytes` from now on.
pub(crate) fn set_limit(bytes: usize) {
    PROCESS.limit.store(bytes, Relaxed);
}

/// Bytes that are live.
pub(crate) fn live() -> usize {
    PROCESS.live.load(Relaxed)
}

/// The most bytes that were live at a time since [`reset_peak`].
pub(crate) fn peak() -> usize {
    PROCESS.peak.load(Relaxed)
}

/// Begins the peak anew, at what is live now.
pub(crate) fn reset_peak() {
    PROCESS.peak.store(live(), Relaxed);
}

impl Budget {
    const fn new() -> Self {
        Self {
            live: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            limit: AtomicUsize::new(UNLIMITED),
        }
    }

    fn exchange(&self, given: usize, size: usize) -> bool {
        let limit = self.limit.load(Relaxed);
        let next = |live: usize| {
            let next = live.wrapping_sub(given).checked_add(size)?;
            (size <= given || next <= limit).then_some(next)
        };
        let before = self.live.fetch_update(Relaxed, Relaxed, next);
        if let Some(after) = before.ok().and_then(next) {
            self.peak.fetch_max(after, Relaxed);
        }
        before.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::{Budget, Relaxed};

    #[test]
    fn the_limit_is_the_last_byte_that_is_had() {
        let budget = Budget::new();
        budget.limit.store(100, Relaxed);
        assert!(budget.exchange(0, 60) && budget.exchange(0, 40));
        assert!(!budget.exchange(0, 1) && budget.exchange(0, 0), "nothing is not more");
        assert!(!budget.exchange(60, 61) && budget.exchange(60, 60));
        assert_eq!(budget.live.load(Relaxed), 100);
        budget.limit.store(50, Relaxed);
        assert!(budget.exchange(60, 59), "what shrinks is no fault, although 99 are too many");
        assert!(!budget.exchange(0, usize::MAX), "a sum that does not fit is above any limit");
        assert_eq!(budget.peak.load(Relaxed), 100);
    }
}
