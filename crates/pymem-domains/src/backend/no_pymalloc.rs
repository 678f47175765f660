//! Stands where `pymalloc.rs` does in a build without pymalloc.

use core::fmt;

use crate::debug::{Checks, DebugConfig};
use crate::domain_allocator::DomainAllocator;
use crate::error::SetAllocatorError;
use malloc_api::Domain;
use malloc_api::ReleaseLevel;
use malloc_api::{AllocatorRecord, ThreadSafety};

/// Counts of pools, of which a build without the feature `pymalloc` has none.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum PoolStats {}

impl fmt::Display for PoolStats {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {}
    }
}

/// No pools.
#[derive(Debug)]
pub(crate) struct Pools;

impl Pools {
    /// # Safety
    ///
    /// None; as for the pools of a build that has them.
    pub(crate) const unsafe fn new(_raw: DomainAllocator, _threads: ThreadSafety) -> Self {
        Self
    }

    pub(crate) const fn record(&'static self) -> Option<AllocatorRecord> {
        None
    }

    pub(crate) fn checks(
        &'static self,
        _debug: &DebugConfig,
        _checks: Checks,
        _domain: Domain,
    ) -> Result<AllocatorRecord, SetAllocatorError> {
        unreachable!("no record is that of pools that are not built")
    }

    pub(crate) fn allocated_blocks(&self) -> usize {
        0
    }

    pub(crate) fn stats(&self) -> PoolStats {
        unreachable!("no row of pymalloc is built without it")
    }

    pub(crate) fn lock_for_fork(&self) {}

    /// # Safety
    ///
    /// None; as for the pools of a build that has them.
    pub(crate) unsafe fn unlock_after_fork(&self) {}

    pub(crate) fn release(&self, _level: ReleaseLevel) -> usize {
        0
    }
}
