//! Owns `Counts`: what was allocated and freed at one site, and what was live there at the peak.
//!
//! A program has hundreds of thousands of sites, most of which count a few blocks: each sum is half a word. Leaves the upper
//! halves, which few sites have, to `profile.rs`.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::counters::Overlap;
use crate::snapshot::Amount;

/// The lower halves of bytes and blocks.
#[derive(Debug, Default)]
struct Half {
    bytes: AtomicU32,
    blocks: AtomicU32,
}

// Relaxed throughout: each count stands for itself, and whoever wants an exact reading stops the program first.
impl Half {
    /// Adds `amount`; returns what the upper halves have to add.
    #[inline]
    fn add(&self, amount: Amount, overlap: Overlap) -> Amount {
        let add = |to: &AtomicU32, more: u64| {
            let after = match overlap {
                Overlap::Never => {
                    let after = u64::from(to.load(Relaxed)).wrapping_add(more);
                    to.store(after as u32, Relaxed);
                    after
                }
                Overlap::AtAnyTime => {
                    u64::from(to.fetch_add(more as u32, Relaxed)).wrapping_add(more)
                }
            };
            after >> u32::BITS
        };
        Amount { blocks: add(&self.blocks, amount.blocks), bytes: add(&self.bytes, amount.bytes) }
    }

    /// Adds one block of `bytes`, by callers that never overlap; `false`, and nothing is added, where the upper halves would have to add.
    #[inline(always)]
    fn add_plainly(&self, bytes: u32) -> bool {
        // One after the other: asked together, the answers take registers of their own.
        let Some(bytes) = self.bytes.load(Relaxed).checked_add(bytes) else { return false };
        let Some(blocks) = self.blocks.load(Relaxed).checked_add(1) else { return false };
        self.bytes.store(bytes, Relaxed);
        self.blocks.store(blocks, Relaxed);
        true
    }

    fn get(&self) -> Amount {
        Amount { bytes: self.bytes.load(Relaxed).into(), blocks: self.blocks.load(Relaxed).into() }
    }

    /// Stores an amount; the largest numbers for one that has upper halves.
    fn set(&self, amount: Amount) {
        let halves = u32::try_from(amount.bytes).ok().zip(u32::try_from(amount.blocks).ok());
        let (bytes, blocks) = halves.unwrap_or((u32::MAX, u32::MAX));
        self.bytes.store(bytes, Relaxed);
        self.blocks.store(blocks, Relaxed);
    }
}

/// The counts of one site.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    allocated: Half,
    freed: Half,
    /// What was live at the peak with the number below, if the site has changed since.
    peak: Half,
    /// The number of the last peak before the last change.
    at: AtomicU32,
}

/// What a site held at the peak.
pub(crate) enum AtPeak {
    /// What is live now.
    Unchanged,
    Noted(Amount),
    /// Too much for half words.
    Large,
}

impl Counts {
    /// Counts `amount` as allocated; returns what the upper halves have to add.
    #[inline]
    pub(crate) fn allocate(&self, amount: Amount, overlap: Overlap) -> Amount {
        self.allocated.add(amount, overlap)
    }

    /// Counts `amount` as freed; returns what the upper halves have to add.
    #[inline]
    pub(crate) fn free(&self, amount: Amount, overlap: Overlap) -> Amount {
        self.freed.add(amount, overlap)
    }

    /// As [`allocate`](Self::allocate), of one block of `bytes`, by callers that never overlap; `false`, and nothing is counted, where the
    /// upper halves would have to add.
    #[inline(always)]
    pub(crate) fn allocate_plainly(&self, bytes: u32) -> bool {
        self.allocated.add_plainly(bytes)
    }

    /// As [`free`](Self::free), likewise.
    #[inline(always)]
    pub(crate) fn free_plainly(&self, bytes: u32) -> bool {
        self.freed.add_plainly(bytes)
    }

    /// The lower halves of what was allocated.
    pub(crate) fn allocated(&self) -> Amount {
        self.allocated.get()
    }

    /// The lower halves of what was freed.
    pub(crate) fn freed(&self) -> Amount {
        self.freed.get()
    }

    /// Whether nothing has changed since the peak with this number.
    #[inline]
    pub(crate) fn is_of_peak(&self, number: u32) -> bool {
        self.at.load(Relaxed) != number
    }

    /// Takes note that the site changes after the peak with this number; `false` if somebody else does.
    pub(crate) fn leave_peak(&self, number: u32) -> bool {
        self.at.swap(number, Relaxed) != number
    }

    /// Stores what was live at the peak; [`AtPeak::Large`] for an amount that has upper halves.
    pub(crate) fn set_peak(&self, live: Amount) {
        self.peak.set(live);
    }

    /// What was live at the peak with this number.
    pub(crate) fn at_peak(&self, number: u32) -> AtPeak {
        match self.peak.get() {
            _ if self.is_of_peak(number) => AtPeak::Unchanged,
            Amount { bytes, .. } if bytes == u32::MAX.into() => AtPeak::Large,
            peak => AtPeak::Noted(peak),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_addition_that_would_carry_adds_nothing() {
        let counts = Counts::default();
        assert!(counts.allocate_plainly(u32::MAX) && counts.free_plainly(7));
        assert!(!counts.allocate_plainly(1), "the bytes");
        counts.freed.blocks.store(u32::MAX, Relaxed);
        assert!(!counts.free_plainly(0), "the blocks");
        assert_eq!(counts.allocated(), Amount { bytes: u32::MAX.into(), blocks: 1 });
        assert_eq!(counts.freed(), Amount { bytes: 7, blocks: u32::MAX.into() });
    }
}
