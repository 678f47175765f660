//! Owns [`Seq`] and [`Goal`]: sequence numbers that survive the wrap. No atomics here.

use crate::sync::{Site, chosen};

/// A sequence number: odd, so never 0, which stands for "offline" in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Seq(u64);

impl Seq {
    /// The first sequence number of a [`Collector`](super::Collector).
    pub const FIRST: Self = Self(1);

    /// What an advance adds: odd numbers stay odd, also across the wrap.
    pub(super) const STEP: u64 = 2;

    /// The odd number `value`; the low bit is set if it is not.
    #[must_use]
    pub const fn new(value: u64) -> Self {
        Self(value | 1)
    }

    /// The sequence number that a slot or counter holds; `None` for 0, "offline".
    pub(super) const fn from_word(word: u64) -> Option<Self> {
        if word == 0 { None } else { Some(Self(word)) }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The number that one advance makes of this one; wraps round.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.wrapping_add(Self::STEP))
    }

    /// Whether this number was current before `other`, right as long as fewer than 2^62 advances lie between them.
    #[must_use]
    #[inline]
    pub fn is_before(self, other: Self) -> bool {
        let distance = self.0.wrapping_sub(other.0) as i64;
        chosen(Site::QsbrWrap, distance < 0, self.0 < other.0)
    }
}

/// The sequence number that every reader must have seen before something can be freed.
///
/// Made by [`Collector::advance`](super::Collector::advance) and [`Collector::next`](super::Collector::next) alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Goal(Seq);

impl Goal {
    pub(super) const fn at(seq: Seq) -> Self {
        Self(seq)
    }

    /// The sequence number that reaches this goal.
    #[must_use]
    pub const fn seq(self) -> Seq {
        self.0
    }

    /// Whether a read sequence of `read` is enough.
    #[must_use]
    #[inline]
    pub fn is_reached_by(self, read: Seq) -> bool {
        !read.is_before(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_before_its_successor_also_across_the_wrap() {
        for value in [1, 3, i64::MAX as u64, i64::MAX as u64 + 2, u64::MAX - 2, u64::MAX] {
            let seq = Seq::new(value);
            assert!(seq.is_before(seq.next()), "{value}");
            assert!(!seq.next().is_before(seq), "{value}");
            assert!(!seq.is_before(seq), "{value}");
        }
    }

    #[test]
    fn the_wrap_skips_offline() {
        assert_eq!(Seq::new(u64::MAX).next(), Seq::FIRST);
        assert_eq!(Seq::new(0), Seq::FIRST);
        assert_eq!(Seq::from_word(0), None);
    }

    #[test]
    fn a_goal_is_reached_by_itself_and_by_what_follows() {
        let goal = Goal::at(Seq::new(u64::MAX));
        assert!(!goal.is_reached_by(Seq::new(u64::MAX - 2)));
        assert!(goal.is_reached_by(goal.seq()));
        assert!(goal.is_reached_by(goal.seq().next()));
    }
}
