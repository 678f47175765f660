//! Owns what an allocator of the table can do: [`Serve`]. Leaves each allocator to a file of its own; a stand-in takes the
//! place of an allocator that the features leave out.

pub(crate) mod malloc;
#[cfg(feature = "mimalloc")]
pub(crate) mod mimalloc;
#[cfg(feature = "pymalloc")]
pub(crate) mod pymalloc;

use core::fmt;

use malloc_api::{AllocatorRecord, Domain, ReleaseLevel};
use memdebug::ConfigureError;

use crate::debug::{Checks, DebugConfig};

/// An allocator of the table, as one set of domains has it.
///
/// The provided methods are those of an allocator that needs no preparation, counts nothing, keeps nothing and has no lock of its
/// own.
pub(crate) trait Serve: fmt::Debug + Sync {
    /// The record that serves `domain`; `None` when the features leave the allocator out.
    fn record(&'static self, domain: Domain) -> Option<AllocatorRecord>;

    /// Called once a set of domains whose row uses the allocator, before the first call.
    fn prepare(&self) {}

    /// `checks` of `domain` over `inner`, a record of this allocator's.
    ///
    /// An allocator that many programs run under checks passes itself instead of `inner`, so that the compiler can inline its
    /// calls.
    fn checks_over(
        &'static self,
        inner: AllocatorRecord,
        debug: &DebugConfig,
        checks: Checks,
        domain: Domain,
    ) -> Result<AllocatorRecord, ConfigureError> {
        debug.over(checks, domain, inner)
    }

    /// How many blocks are live: 0 where the allocator does not count them, `None` where they cannot be counted now.
    fn allocated_blocks(&self) -> Option<usize> {
        Some(0)
    }

    /// Usable bytes of a block of pools; `None` for any other address.
    fn pool_block_bytes(&self, _block: *const u8) -> Option<usize> {
        None
    }

    /// Gives memory without a live block back to the system; returns how many bytes.
    fn release(&self, _level: ReleaseLevel) -> usize {
        0
    }

    /// Takes the allocator's locks, before a fork.
    fn lock_for_fork(&self) {}

    /// Gives the locks back, in the parent and in the child.
    ///
    /// # Safety
    ///
    /// 1. This thread, or in the child the thread that forked, has called [`lock_for_fork`](Self::lock_for_fork) before.
    unsafe fn unlock_after_fork(&self) {}
}

/// The stand-in of a build without pymalloc.
#[cfg(not(feature = "pymalloc"))]
pub(crate) mod pymalloc {
    use core::fmt;

    use malloc_api::{AllocatorRecord, Domain, ThreadSafety};

    use super::Serve;
    use crate::raw_below::RawBelow;

    /// Counts of pools, of which a build without the feature `pymalloc` has none.
    #[derive(Clone, Debug, PartialEq, Eq)]
    #[cfg_attr(feature = "serde", derive(serde::Serialize))]
    pub enum PoolStats {}

    impl fmt::Display for PoolStats {
        fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
            match *self {}
        }
    }

    #[derive(Debug)]
    pub(crate) struct Pools;

    impl Pools {
        /// # Safety
        ///
        /// None; as for the pools of a build that has them.
        pub(crate) const unsafe fn new(_: RawBelow, _: bool, _: ThreadSafety) -> Self {
            Self
        }

        /// # Safety
        ///
        /// None; as for the pools of a build that has them.
        pub(crate) const unsafe fn unshared(&'static self) -> Option<[AllocatorRecord; 2]> {
            None
        }

        pub(crate) const fn stats(&self) -> Option<PoolStats> {
            None
        }

        pub(crate) const fn threads(&self) -> ThreadSafety {
            ThreadSafety::AnyThread
        }

        pub(crate) const fn share(&'static self) {}
    }

    impl Serve for Pools {
        fn record(&'static self, _: Domain) -> Option<AllocatorRecord> {
            None
        }
    }
}

/// The stand-in of a build without mimalloc.
#[cfg(not(feature = "mimalloc"))]
pub(crate) mod mimalloc {
    use malloc_api::{AllocatorRecord, Domain};

    use super::Serve;
    use crate::heap_stats::HeapStats;
    use crate::profile::Profile;

    #[derive(Debug)]
    pub(crate) struct Heaps;

    impl Heaps {
        pub(crate) const fn new(_: Profile) -> Self {
            Self
        }

        pub(crate) const fn stats_if_alone(&self) -> Option<HeapStats> {
            None
        }

        pub(crate) const fn version(&self) -> Option<String> {
            None
        }
    }

    impl Serve for Heaps {
        fn record(&'static self, _: Domain) -> Option<AllocatorRecord> {
            None
        }
    }
}
