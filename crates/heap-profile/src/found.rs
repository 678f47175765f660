//! Owns `Found`: what is known of a frame that was captured.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What a frame stands for: above 32 bits which use of its words this is, below the number of the place and 1, or 0 for a frame
/// that is left out.
#[derive(Debug)]
pub(crate) struct Found(AtomicU64);

impl Found {
    pub(crate) fn new(usage: u32, place: Option<u32>) -> Self {
        Self(AtomicU64::new(Self::word(usage, place)))
    }

    fn word(usage: u32, place: Option<u32>) -> u64 {
        u64::from(usage) << 32 | place.map_or(0, |place| u64::from(place) + 1)
    }

    /// The place in this use of the words; `None` where another use was found last.
    pub(crate) fn place(&self, usage: u32) -> Option<Option<u32>> {
        // Relaxed: the word stands for itself, and places were interned before it was stored.
        let word = self.0.load(Relaxed);
        (word >> 32 == u64::from(usage)).then(|| (word as u32).checked_sub(1))
    }

    pub(crate) fn set(&self, usage: u32, place: Option<u32>) {
        self.0.store(Self::word(usage, place), Relaxed);
    }
}
