//! Owns `Origin`: where a block comes from, an allocator's domain or somebody who reports memory of his own.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use malloc_api::Domain;

/// Where a block comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// A profiled allocator, as one of these domains.
    Domain(Domain),
    /// Whoever told a [`Tracker`](crate::Tracker) of the block, by the number that it uses.
    Tracked(u32),
}

impl From<Domain> for Origin {
    fn from(domain: Domain) -> Self {
        Self::Domain(domain)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Domain(domain) => domain.fmt(f),
            Self::Tracked(number) => number.fmt(f),
        }
    }
}

/// The numbers of origins in a site's key, of which [`Domain`] has the first ones.
const FIRST_TRACKED: u8 = Domain::ALL.len() as u8;

/// How many numbers are told apart: few extensions report memory. Those beyond are all counted as the last one.
const TRACKED_MAX: usize = 64;

/// The numbers that report memory, as they came.
#[derive(Debug)]
pub(crate) struct Origins([AtomicU64; TRACKED_MAX]);

impl Origins {
    pub(crate) const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; TRACKED_MAX])
    }

    /// The number of an origin in a site's key.
    pub(crate) fn index(&self, origin: Origin) -> u8 {
        let number = match origin {
            Origin::Domain(domain) => return domain as u8,
            Origin::Tracked(number) => u64::from(number) + 1,
        };
        let is_its_own = |place: &AtomicU64| {
            let holder = place.compare_exchange(0, number, Relaxed, Relaxed);
            holder.is_ok() || holder == Err(number)
        };
        let at = self.0.iter().position(is_its_own).unwrap_or(TRACKED_MAX - 1);
        FIRST_TRACKED + at as u8
    }

    /// The origin with this number in a site's key.
    pub(crate) fn origin(&self, index: u8) -> Origin {
        match Domain::ALL.get(usize::from(index)) {
            Some(domain) => Origin::Domain(*domain),
            None => {
                let place = &self.0[usize::from(index - FIRST_TRACKED) % TRACKED_MAX];
                Origin::Tracked(place.load(Relaxed).saturating_sub(1) as u32)
            }
        }
    }
}
