//! Owns the guess how much free memory stays resident for the next need.
//!
//! As much as is in use, and a floor: a program that frees half of its memory and allocates it anew meets no page fault, and
//! one that ends its life holds little. The floor learns from what was given back in vain.

/// Bytes of free pools that stay resident, however little is in use.
const FLOOR_BYTES: usize = 6 << 20;

/// How much of the free memory is kept.
pub(crate) struct Kept {
    /// Invariant 1: at least `FLOOR_BYTES`.
    floor: usize,
    /// Bytes given back that have not been needed again since.
    given_back: usize,
}

impl Kept {
    pub(crate) const fn new() -> Self {
        Self { floor: FLOOR_BYTES, given_back: 0 }
    }

    /// Bytes of free pools that may stay resident beside `open_bytes` of pools in use.
    #[inline]
    pub(crate) fn bytes(&self, open_bytes: usize) -> usize {
        open_bytes.max(self.floor)
    }

    /// Notes that `bytes` went back to the system. What is kept for a need that no longer comes wears off by each time.
    pub(crate) fn gave_back(&mut self, bytes: usize) {
        self.given_back += bytes;
        self.floor -= (self.floor - FLOOR_BYTES) / 64;
    }

    /// Notes that `bytes` of fresh memory are needed page by page: as far as they were given back before, that was in vain,
    /// and the floor rises, to `peak` at most and so fast that a program which repeats itself faults once.
    pub(crate) fn missed(&mut self, bytes: usize, peak: usize) {
        let missed = self.needed(bytes);
        self.floor = (self.floor + 4 * missed).min(peak.max(FLOOR_BYTES));
    }

    /// Notes that `bytes` of fresh memory came at little cost, in huge pages; returns how many had been given back before.
    pub(crate) fn needed(&mut self, bytes: usize) -> usize {
        let again = bytes.min(self.given_back);
        self.given_back -= again;
        again
    }
}
