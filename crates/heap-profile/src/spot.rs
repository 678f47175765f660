//! Owns `Spot`: where a stack ends in the tree of stacks, and by which of the thread's steps.

use std::num::NonZeroU64;

use crate::frame::Link;

/// The link of a node, and the number of the step to the node, in one word: a spot, or that there is none, stays in a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spot(NonZeroU64);

impl Spot {
    /// No frame, and no step.
    pub(crate) const NOWHERE: Self = Self::new(0, 0);

    #[inline(always)]
    pub(crate) const fn new(node: Link, step: u32) -> Self {
        // Steps are few, so that the upper bit is free to say that this is a spot.
        match NonZeroU64::new(1 << (u64::BITS - 1) | (step as u64) << 32 | node as u64) {
            Some(word) => Self(word),
            None => Self(NonZeroU64::MIN),
        }
    }

    /// The link of the innermost frame; 0 for none.
    #[inline(always)]
    pub(crate) const fn node(self) -> Link {
        self.0.get() as Link
    }

    /// The number of the step to the node.
    #[inline(always)]
    pub(crate) const fn step(self) -> u32 {
        (self.0.get() << 1 >> 33) as u32
    }
}

impl Default for Spot {
    fn default() -> Self {
        Self::NOWHERE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spot_has_its_node_and_its_step() {
        let spot = Spot::new(Link::MAX, 4095);
        assert_eq!((spot.node(), spot.step()), (Link::MAX, 4095));
        assert_eq!((Spot::NOWHERE.node(), Spot::NOWHERE.step()), (0, 0));
    }
}
