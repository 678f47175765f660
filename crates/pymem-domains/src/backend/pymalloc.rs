//! Owns the pools of one set of domains: behind a lock of their own, or behind one that their callers hold as long as that is one.

use core::ptr::NonNull;

use malloc_api::{AllocatorRecord, Domain, ReleaseLevel, ThreadSafety};
use memdebug::ConfigureError;
use pymalloc_core::{
    ArenaAllocator, HugePages, LargeRuns, LockedPymalloc, MmapArenas, SerializedPymalloc, Stats,
    large_runs_stats, release_large_runs,
};

use super::Serve;
use super::malloc::libc_record;
use crate::debug::{Checks, DebugConfig};
use crate::raw_below::RawBelow;

/// Counts of the pools; their text is that of CPython's `sys._debugmallocstats()`.
pub type PoolStats = Stats;

/// pymalloc for the mem and obj domains, which share it.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "one for each set of domains, which lives for ever")]
pub(crate) enum Pools {
    /// Behind a lock of their own, with magazines of each thread before the lock.
    Locked(LockedPymalloc<LargeRuns<RawBelow>, MmapArenas>),
    /// Behind the callers' lock, until they are shared.
    Serialized(SerializedPymalloc<LargeRuns<RawBelow>, MmapArenas>),
}

/// Whether `raw` is the C library's allocator with nothing over it: what another allocator or a wrapper was set for reaches it.
fn is_libc(raw: &RawBelow) -> bool {
    *raw.raw.load() == libc_record()
}

/// Tells who watches of a large block that ends.
fn tell_freed(raw: &RawBelow, block: NonNull<u8>) {
    if let Some(watch) = raw.watch.get() {
        (watch.freed)(block);
    }
}

/// Calls a method that both sorts of pools have.
macro_rules! either {
    ($pools:expr, $name:ident => $call:expr) => {
        match $pools {
            Pools::Locked($name) => $call,
            Pools::Serialized($name) => $call,
        }
    };
}

impl Pools {
    /// # Safety
    ///
    /// 1. `threads` is true of every later call, until the pools are shared.
    pub(crate) const unsafe fn new(raw: RawBelow, huge_pages: bool, threads: ThreadSafety) -> Self {
        let arenas = match huge_pages {
            true => MmapArenas::with_huge_pages(HugePages::Hugetlb),
            false => MmapArenas::new(),
        };
        let large = LargeRuns::while_open(raw, is_libc, tell_freed);
        match threads {
            ThreadSafety::AnyThread => Self::Locked(LockedPymalloc::with_source(large, arenas)),
            ThreadSafety::OneAtATime => {
                // SAFETY: 1: by duty 1.
                Self::Serialized(unsafe { SerializedPymalloc::with_source(large, arenas) })
            }
        }
    }

    /// Which threads may call now.
    pub(crate) fn threads(&self) -> ThreadSafety {
        match self {
            Self::Serialized(pools) if !pools.is_shared() => ThreadSafety::OneAtATime,
            Self::Serialized(_) | Self::Locked(_) => ThreadSafety::AnyThread,
        }
    }

    /// Lets any thread call from now on.
    pub(crate) fn share(&'static self) {
        if let Self::Serialized(pools) = self {
            pools.share();
        }
    }

    /// The record of mem and obj, and one for callers that hold one lock for ever.
    ///
    /// # Safety
    ///
    /// 1. [`share`](Self::share) is never called.
    pub(crate) unsafe fn unshared(&'static self) -> Option<[AllocatorRecord; 2]> {
        let Self::Serialized(pools) = self else { return None };
        // SAFETY: 1: by duty 1.
        let unshared = unsafe { pools.unshared() };
        Some([AllocatorRecord::new(pools), AllocatorRecord::new(unshared)])
    }

    pub(crate) fn stats(&self) -> Option<PoolStats> {
        let mut stats = either!(self, pools => pools.stats());
        stats.large_runs = Some(large_runs_stats());
        Some(stats)
    }

    /// The calling thread has what the callers hold.
    pub(crate) fn for_each_pool(&self, visit: impl FnMut(pymalloc_core::PoolStats)) {
        either!(self, pools => pools.for_each_pool(visit));
    }

    pub(crate) fn arena_allocator(&self) -> ArenaAllocator {
        either!(self, pools => pools.arena_allocator())
    }

    /// # Safety
    ///
    /// 1. The record's functions keep the promises of [`ArenaSource`](pymalloc_core::ArenaSource), from any thread.
    /// 2. Its `free` takes back the arenas of the record before it.
    pub(crate) unsafe fn set_arena_allocator(&self, record: ArenaAllocator) {
        // SAFETY: the duties are the caller's 1 and 2.
        either!(self, pools => unsafe { pools.set_arena_allocator(record) });
    }

    /// # Safety
    ///
    /// 1. The hook does not use these pools, which are in the middle of a request.
    /// 2. The hook does not unwind.
    pub(crate) unsafe fn set_new_arena_hook(&self, hook: Option<fn(&PoolStats)>) {
        // SAFETY: 1, 2: the caller's.
        either!(self, pools => unsafe { pools.set_new_arena_hook(hook) });
    }
}

impl Serve for Pools {
    fn record(&'static self, _: Domain) -> Option<AllocatorRecord> {
        Some(match self {
            Self::Locked(pools) => match pools.cached() {
                Some(cached) => AllocatorRecord::new(cached),
                None => AllocatorRecord::new(pools),
            },
            Self::Serialized(pools) => AllocatorRecord::new(pools),
        })
    }

    fn checks_over(
        &'static self,
        inner: AllocatorRecord,
        debug: &DebugConfig,
        checks: Checks,
        domain: Domain,
    ) -> Result<AllocatorRecord, ConfigureError> {
        match self {
            Self::Locked(pools) => match pools.cached() {
                Some(cached) => debug.over(checks, domain, cached),
                None => debug.over(checks, domain, inner),
            },
            Self::Serialized(pools) => debug.over(checks, domain, pools),
        }
    }

    fn allocated_blocks(&self) -> Option<usize> {
        Some(either!(self, pools => pools.allocated_blocks()))
    }

    fn pool_block_bytes(&self, block: *const u8) -> Option<usize> {
        either!(self, pools => pools.block_size(block))
    }

    fn release(&self, level: ReleaseLevel) -> usize {
        either!(self, pools => pools.release(level)) + release_large_runs()
    }

    fn lock_for_fork(&self) {
        match self {
            Self::Locked(pools) => pools.lock_for_fork(),
            Self::Serialized(pools) => pools.lock_for_fork(),
        }
    }

    unsafe fn unlock_after_fork(&self) {
        match self {
            // SAFETY: 1: by duty 1.
            Self::Locked(pools) => unsafe { pools.unlock_after_fork() },
            // SAFETY: 1: by duty 1.
            Self::Serialized(pools) => unsafe { pools.unlock_after_fork() },
        }
    }
}
