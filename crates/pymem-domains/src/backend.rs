//! Owns the allocators that serve one set of domains: their instances and their records.
//! Leaves each library behind a pair of files of one name, of which the features choose one.

#[cfg_attr(feature = "mimalloc", path = "backend/mimalloc.rs")]
#[cfg_attr(not(feature = "mimalloc"), path = "backend/no_mimalloc.rs")]
mod mimalloc;
#[cfg_attr(feature = "pymalloc", path = "backend/pymalloc.rs")]
#[cfg_attr(not(feature = "pymalloc"), path = "backend/no_pymalloc.rs")]
mod pymalloc;

use malloc_api::LibcMalloc;

use crate::debug::{Checks, DebugConfig};
use crate::domain_allocator::DomainAllocator;
use crate::error::SetAllocatorError;
use crate::profile::Build;
use crate::table::Backend;
use malloc_api::Domain;
use malloc_api::{AllocatorRecord, ThreadSafety};

pub(crate) use mimalloc::Heaps;
pub use pymalloc::PoolStats;
pub(crate) use pymalloc::Pools;

static LIBC: LibcMalloc = LibcMalloc;

/// The record of the C library's allocator.
pub(crate) const fn libc_record() -> AllocatorRecord {
    AllocatorRecord::new(&LIBC)
}

/// The allocators of one set of domains.
#[derive(Debug)]
pub(crate) struct Backends {
    pub(crate) pools: Pools,
    pub(crate) heaps: Heaps,
}

impl Backends {
    /// Allocators for `build`, whose pools send what is not for them to `raw`.
    ///
    /// # Safety
    ///
    /// 1. `threads` is true of every later call.
    pub(crate) const unsafe fn new(
        raw: DomainAllocator,
        build: Build,
        threads: ThreadSafety,
    ) -> Self {
        // SAFETY: 1: by duty 1.
        let pools = unsafe { Pools::new(raw, threads) };
        Self { pools, heaps: Heaps::new(build) }
    }

    /// `checks` of `domain` over `inner`, without a call through the record where it is that of a backend that is called
    /// often.
    pub(crate) fn checks_over(
        &'static self,
        inner: AllocatorRecord,
        debug: &DebugConfig,
        checks: Checks,
        domain: Domain,
    ) -> Result<AllocatorRecord, SetAllocatorError> {
        if inner == libc_record() {
            return debug.over(checks, domain, LibcMalloc);
        }
        match self.pools.record() {
            Some(pools) if pools == inner => self.pools.checks(debug, checks, domain),
            _ => debug.over(checks, domain, inner),
        }
    }

    /// The record of `backend`; `None` when it is not compiled in.
    pub(crate) fn record(&'static self, backend: Backend) -> Option<AllocatorRecord> {
        match backend {
            Backend::Malloc => Some(libc_record()),
            Backend::Pymalloc => self.pools.record(),
            Backend::MimallocRaw => self.heaps.raw(),
            Backend::Mimalloc => self.heaps.mem(),
            Backend::MimallocObject => self.heaps.object(),
        }
    }
}
