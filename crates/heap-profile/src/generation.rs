//! Owns `Generation`: how long what a thread remembers of frames holds.

/// What stands above an address in a word that tells a frame: it grows when code has died, as the address may be in other code then. The
/// lower bits are 0, and it is not 0.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Generation(u64);

/// Bits of an address.
pub(crate) const ADDRESS_BITS: u32 = 48;

impl Generation {
    pub(crate) const FIRST: Self = Self(1 << ADDRESS_BITS);

    /// The next one; `None` after the last.
    pub(crate) fn next(self) -> Option<Self> {
        self.0.checked_add(1 << ADDRESS_BITS).map(Self)
    }

    /// What stands above an address.
    #[inline(always)]
    pub(crate) const fn bits(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_end() {
        let mut generation = Generation::FIRST;
        let mut count = 1;
        while let Some(next) = generation.next() {
            assert!(next.0 > generation.0 && next.0 << (u64::BITS - ADDRESS_BITS) == 0);
            (generation, count) = (next, count + 1);
        }
        assert_eq!(count, u16::MAX);
    }
}
