//! Owns `Snapshot`: what a profile knew at one moment, with names, and the difference of two.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::origin::Origin;
use crate::source::Location;

/// Bytes and blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Amount {
    /// Bytes as they were requested.
    pub bytes: u64,
    /// Blocks.
    pub blocks: u64,
}

impl Amount {
    /// One block of `size` bytes.
    #[inline]
    pub(crate) const fn block(size: usize) -> Self {
        Self { bytes: size as u64, blocks: 1 }
    }

    /// The sum of two amounts, up to the largest numbers that there are.
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(other.bytes),
            blocks: self.blocks.saturating_add(other.blocks),
        }
    }

    /// What is left of an amount without another; zero where the other one is larger.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(other.bytes),
            blocks: self.blocks.saturating_sub(other.blocks),
        }
    }
}

/// The frames of a stack, each of which all stacks share.
pub type Stack = Arc<[Arc<Location>]>;

/// The memory of one stack, of one origin and one size class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// The stack, innermost frame first; empty where none could be told. Sites of one stack share it.
    pub stack: Stack,
    /// Which domain allocated, or who reported the memory.
    pub origin: Origin,
    /// The largest size in bytes of the class: each power of two above 16 is divided in four.
    pub class_bytes: u64,
    /// What is live.
    pub live: Amount,
    /// What was live at the peak.
    pub peak: Amount,
    /// What was ever allocated.
    pub total: Amount,
}

/// What a profile knew at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Every site, those with the most live bytes first.
    pub sites: Vec<Site>,
    /// What was allocated without being recorded, as there was no memory to note it.
    pub lost: Amount,
}

impl Snapshot {
    /// What is live at all sites.
    #[must_use]
    pub fn live(&self) -> Amount {
        self.sum(|site| site.live)
    }

    /// What was live at the peak at all sites.
    #[must_use]
    pub fn peak(&self) -> Amount {
        self.sum(|site| site.peak)
    }

    /// What was ever allocated at all sites.
    #[must_use]
    pub fn total(&self) -> Amount {
        self.sum(|site| site.total)
    }

    fn sum(&self, of: impl Fn(&Site) -> Amount) -> Amount {
        self.sites.iter().map(of).fold(Amount::default(), Amount::saturating_add)
    }

    /// By how much the live bytes of each stack have grown since `before`, the stack that grew the most first; stacks that
    /// did not change are left out.
    #[must_use]
    pub fn growth_since<'a>(&'a self, before: &'a Self) -> Vec<(&'a Stack, i128)> {
        let mut growth: BTreeMap<&Stack, i128> = BTreeMap::new();
        for site in &self.sites {
            *growth.entry(&site.stack).or_default() += i128::from(site.live.bytes);
        }
        for site in &before.sites {
            *growth.entry(&site.stack).or_default() -= i128::from(site.live.bytes);
        }
        let mut changed: Vec<_> = growth.into_iter().filter(|&(_, bytes)| bytes != 0).collect();
        changed.sort_by_key(|&(_, bytes)| -bytes);
        changed
    }
}
