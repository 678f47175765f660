//! Owns which of the region's arenas are taken, mapped, warm and reserved. Leaves what follows from it to `region.rs`.

use core::ops::Range;

use crate::config::ARENAS_MAX;

/// What is known of an arena.
#[derive(Clone, Copy)]
pub(crate) enum Set {
    /// Somebody has it, or its pair is lost.
    Taken,
    /// Both arenas of a pair or none; readable and writable. All that are taken but for lost pairs, and free
    /// ones that the system did not unmap.
    Mapped,
    /// It is free, and the purger has or had it: the other halves of huge pages, and those that are dead.
    Warm,
    /// It is in a reserved huge page, also when it is free: the kernel drops no part of such a page, and does not say so.
    Reserved,
}

/// The sets of arenas, a word of each for the same 64 arenas side by side: a small process touches one page.
pub(crate) struct Sets([[u64; 4]; Sets::WORDS]);

impl Sets {
    /// Nothing is known of any.
    pub(crate) const NONE: Self = Self([[0; 4]; Self::WORDS]);

    /// Words of a set.
    pub(crate) const WORDS: usize = ARENAS_MAX / 64;

    pub(crate) const fn word(&self, set: Set, word: usize) -> u64 {
        self.0[word][set as usize]
    }

    pub(crate) fn has(&self, set: Set, index: usize) -> bool {
        self.word(set, index / 64) >> (index % 64) & 1 == 1
    }

    pub(crate) fn insert(&mut self, set: Set, index: usize) {
        self.0[index / 64][set as usize] |= 1 << (index % 64);
    }

    /// Takes `index` out; was it in?
    pub(crate) fn remove(&mut self, set: Set, index: usize) -> bool {
        let was = self.has(set, index);
        self.0[index / 64][set as usize] &= !(1 << (index % 64));
        was
    }

    /// Those in `set`, in some words.
    pub(crate) fn members(&self, set: Set, words: Range<usize>) -> impl Iterator<Item = usize> {
        words.flat_map(move |word| {
            let mut left = self.word(set, word);
            core::iter::from_fn(move || {
                let bit = left.trailing_zeros() as usize;
                left &= left.checked_sub(1)?;
                Some(word * 64 + bit)
            })
        })
    }

    /// Puts the pair of `index` in, or takes it out.
    pub(crate) fn set_pair(&mut self, set: Set, index: usize, is_in: bool) {
        let pair = 3 << ((index % 64) & !1);
        match is_in {
            true => self.0[index / 64][set as usize] |= pair,
            false => self.0[index / 64][set as usize] &= !pair,
        }
    }
}
