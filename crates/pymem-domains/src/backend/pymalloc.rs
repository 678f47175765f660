//! Owns the pools of one set of domains, and what only a build with pymalloc can ask of them.

use pymalloc_core::{ArenaAllocator, LockedPymalloc, MmapArenas, Release, Stats};

use crate::domains::{DomainAllocator, Domains};
use crate::record::AllocatorRecord;
use crate::release::ReleaseLevel;

/// Counts of the pools; their text is that of CPython's `sys._debugmallocstats()`.
pub type PoolStats = Stats;

/// pymalloc for the mem and obj domains, which share it.
#[derive(Debug)]
pub(crate) struct Pools(LockedPymalloc<DomainAllocator, MmapArenas>);

impl Pools {
    pub(crate) const fn new(raw: DomainAllocator) -> Self {
        Self(LockedPymalloc::new(raw))
    }

    pub(crate) const fn record(&'static self) -> Option<AllocatorRecord> {
        Some(AllocatorRecord::new(&self.0))
    }

    pub(crate) fn allocated_blocks(&self) -> usize {
        self.0.allocated_blocks()
    }

    pub(crate) fn stats(&self) -> PoolStats {
        self.0.stats()
    }

    pub(crate) fn release(&self, level: ReleaseLevel) -> usize {
        self.0.release(match level {
            ReleaseLevel::Arenas => Release::Arenas,
            ReleaseLevel::Pools => Release::Pools,
            ReleaseLevel::Pages => Release::Pages,
        })
    }
}

/// With the feature `pymalloc`.
impl Domains {
    /// The record through which the pools get and return arenas; C's `PyObject_GetArenaAllocator`.
    #[must_use]
    pub fn arena_allocator(self) -> ArenaAllocator {
        self.backends().pools.0.arena_allocator()
    }

    /// Makes the pools get and return arenas through `record`; C's `PyObject_SetArenaAllocator`.
    ///
    /// # Safety
    ///
    /// 1. The record's functions keep the promises of [`ArenaSource`](pymalloc_core::ArenaSource), from any thread.
    /// 2. Its `free` takes back arenas of the record before it, as far as there are any.
    pub unsafe fn set_arena_allocator(self, record: ArenaAllocator) {
        // SAFETY: the duties are the caller's 1 and 2.
        unsafe { self.backends().pools.0.set_arena_allocator(record) }
    }

    /// Calls `hook` before each new arena, with the counts as of then; `None` stops that.
    ///
    /// This is the moment at which `PYTHONMALLOCSTATS` prints. The hook must not use the domains.
    pub fn set_new_arena_hook(self, hook: Option<fn(&PoolStats)>) {
        self.backends().pools.0.set_new_arena_hook(hook);
    }
}
