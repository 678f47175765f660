//! Owns `Counters`: what was allocated and freed of many sites together.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::snapshot::Amount;

/// Whether calls for a domain may overlap, which decides how a count is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Overlap {
    /// Never: the callers hold one lock, as Python's threads hold the GIL. A count is a load and a store.
    Never,
    /// At any time. A count is an atomic addition.
    AtAnyTime,
}

/// Bytes and blocks that only grow.
#[derive(Debug, Default)]
pub(crate) struct Sum {
    bytes: AtomicU64,
    blocks: AtomicU64,
}

// Relaxed throughout: each count stands for itself, and whoever wants an exact reading stops the program first.
impl Sum {
    /// Adds `amount`; returns the bytes of the sum.
    #[inline]
    fn add(&self, amount: Amount, overlap: Overlap) -> u64 {
        match overlap {
            Overlap::Never => {
                let bytes = self.bytes.load(Relaxed).wrapping_add(amount.bytes);
                self.bytes.store(bytes, Relaxed);
                self.blocks.store(self.blocks.load(Relaxed).wrapping_add(amount.blocks), Relaxed);
                bytes
            }
            Overlap::AtAnyTime => {
                self.blocks.fetch_add(amount.blocks, Relaxed);
                self.bytes.fetch_add(amount.bytes, Relaxed).wrapping_add(amount.bytes)
            }
        }
    }

    pub(crate) fn get(&self) -> Amount {
        Amount { bytes: self.bytes.load(Relaxed), blocks: self.blocks.load(Relaxed) }
    }

    pub(crate) fn set(&self, amount: Amount) {
        self.bytes.store(amount.bytes, Relaxed);
        self.blocks.store(amount.blocks, Relaxed);
    }
}

/// Two sums.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    allocated: Sum,
    freed: Sum,
}

impl Counters {
    #[inline]
    pub(crate) fn allocate(&self, amount: Amount, overlap: Overlap) {
        self.allocated.add(amount, overlap);
    }

    /// Counts `amount` as freed; returns the freed bytes.
    #[inline]
    pub(crate) fn free(&self, amount: Amount, overlap: Overlap) -> u64 {
        self.freed.add(amount, overlap)
    }

    /// Everything that was ever allocated.
    pub(crate) fn allocated(&self) -> Amount {
        self.allocated.get()
    }

    /// Everything that was ever freed.
    pub(crate) fn freed(&self) -> Amount {
        self.freed.get()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn additions_that_overlap_are_all_counted() {
        let counters = Counters::default();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500_000 {
                        counters.allocate(Amount::block(3), Overlap::AtAnyTime);
                        counters.free(Amount::block(2), Overlap::AtAnyTime);
                    }
                });
            }
        });
        assert_eq!(counters.allocated(), Amount { bytes: 6_000_000, blocks: 2_000_000 });
        assert_eq!(counters.freed(), Amount { bytes: 4_000_000, blocks: 2_000_000 });
    }
}
