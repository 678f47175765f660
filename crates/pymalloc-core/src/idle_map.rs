//! Owns the map of a pool's idle blocks, those that were not handed out since the pool opened or went back to the system: a bit for a
//! group of neighbours in up to `IDLE_BYTES`. Leaves to `pool.rs` where the map lies and what a group is.

use core::ops::Range;

use crate::config::{IDLE_BYTES, POOL_BYTES};

/// Groups that a map has a bit for.
pub(crate) const GROUPS_MAX: usize = POOL_BYTES / IDLE_BYTES;

/// Words of a map.
pub(crate) const IDLE_WORDS: usize = GROUPS_MAX / 64;

/// Which groups of blocks of a pool are idle. Zero bytes are a valid map: no group is.
#[repr(transparent)]
pub(crate) struct IdleMap([u64; IDLE_WORDS]);

impl IdleMap {
    /// Makes the first `groups` idle but for those in `lost`, and no other.
    pub(crate) fn open(&mut self, groups: usize, lost: Range<usize>) {
        self.clear();
        let (whole, rest) = (groups / 64, groups % 64);
        self.0[..whole].fill(u64::MAX);
        if rest > 0 {
            self.0[whole] = (1 << rest) - 1;
        }
        lost.for_each(|group| self.0[group / 64] &= !(1 << (group % 64)));
    }

    /// Makes no group idle.
    pub(crate) fn clear(&mut self) {
        self.0.fill(0);
    }

    /// The first word from `from` on that has a bit, or else the last word.
    #[inline]
    pub(crate) fn first_word(&self, from: usize) -> usize {
        let mut word = from;
        while word < IDLE_WORDS - 1 && self.0[word] == 0 {
            word += 1;
        }
        word
    }

    /// Takes neighbouring groups of `word`, those of the lowest addresses, `want` of them at most; an empty range if the word has none.
    #[inline]
    pub(crate) fn take(&mut self, word: usize, want: u32) -> Range<usize> {
        let bits = self.0[word];
        if bits == 0 {
            return 0..0;
        }
        let first = bits.trailing_zeros();
        let groups = (bits >> first).trailing_ones().min(want);
        self.0[word] = bits & !(u64::MAX >> (64 - groups) << first);
        let group = word * 64 + first as usize;
        group..group + groups as usize
    }

    /// Makes `group` idle.
    pub(crate) fn put(&mut self, group: usize) {
        self.0[group / 64] |= 1 << (group % 64);
    }

    pub(crate) fn has(&self, group: usize) -> bool {
        self.0[group / 64] >> (group % 64) & 1 == 1
    }
}
