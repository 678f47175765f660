//! Owns the pools of one set of domains, and what only a build with pymalloc can ask of them.
//! Leaves pools without a lock to `serialized.rs`.

#[path = "serialized.rs"]
mod serialized;

use pymalloc_core::{ArenaAllocator, LockedPymalloc, MmapArenas, Stats};

use self::serialized::SerializedPymalloc;
use crate::debug::{Checks, DebugConfig};
use crate::domain_allocator::DomainAllocator;
use crate::domains::Domains;
use crate::error::SetAllocatorError;
use malloc_api::Domain;
use malloc_api::ReleaseLevel;
use malloc_api::{AllocatorRecord, ThreadSafety};

/// Counts of the pools; their text is that of CPython's `sys._debugmallocstats()`.
pub type PoolStats = Stats;

/// pymalloc for the mem and obj domains, which share it.
#[derive(Debug)]
pub(crate) enum Pools {
    /// Behind a lock of their own.
    Locked(LockedPymalloc<DomainAllocator, MmapArenas>),
    /// Behind the callers' lock.
    Serialized(SerializedPymalloc),
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
    /// 1. `threads` is true of every later call.
    pub(crate) const unsafe fn new(raw: DomainAllocator, threads: ThreadSafety) -> Self {
        match threads {
            ThreadSafety::AnyThread => Self::Locked(LockedPymalloc::new(raw)),
            ThreadSafety::OneAtATime => {
                // SAFETY: 1: by duty 1.
                Self::Serialized(unsafe { SerializedPymalloc::new(raw) })
            }
        }
    }

    pub(crate) const fn record(&'static self) -> Option<AllocatorRecord> {
        Some(either!(self, pools => AllocatorRecord::new(pools)))
    }

    /// `checks` of `domain` over the pools.
    pub(crate) fn checks(
        &'static self,
        debug: &DebugConfig,
        checks: Checks,
        domain: Domain,
    ) -> Result<AllocatorRecord, SetAllocatorError> {
        either!(self, pools => debug.over(checks, domain, pools))
    }

    pub(crate) fn allocated_blocks(&self) -> usize {
        either!(self, pools => pools.allocated_blocks())
    }

    pub(crate) fn stats(&self) -> PoolStats {
        either!(self, pools => pools.stats())
    }

    /// Takes the pools' own lock, if they have one, before a fork.
    pub(crate) fn lock_for_fork(&self) {
        match self {
            Self::Locked(pools) => pools.lock_for_fork(),
            Self::Serialized(_) => {}
        }
    }

    /// Gives that lock back, in the parent and in the child.
    ///
    /// # Safety
    ///
    /// 1. This thread, or in the child the thread that forked, has called [`lock_for_fork`](Self::lock_for_fork) before.
    pub(crate) unsafe fn unlock_after_fork(&self) {
        match self {
            // SAFETY: 1: by duty 1.
            Self::Locked(pools) => unsafe { pools.unlock_after_fork() },
            Self::Serialized(_) => {}
        }
    }

    pub(crate) fn release(&self, level: ReleaseLevel) -> usize {
        either!(self, pools => pools.release(level))
    }
}

/// With the feature `pymalloc`.
impl Domains {
    /// The record through which the pools get and return arenas; C's `PyObject_GetArenaAllocator`.
    #[must_use]
    pub fn arena_allocator(self) -> ArenaAllocator {
        either!(&self.backends().pools, pools => pools.arena_allocator())
    }

    /// Makes the pools get and return arenas through `record`; C's `PyObject_SetArenaAllocator`.
    ///
    /// # Safety
    ///
    /// 1. The record's functions keep the promises of [`ArenaSource`](pymalloc_core::ArenaSource), from any thread.
    /// 2. Its `free` takes back arenas of the record before it, as far as there are any.
    pub unsafe fn set_arena_allocator(self, record: ArenaAllocator) {
        // SAFETY: the duties are the caller's 1 and 2.
        either!(&self.backends().pools, pools => unsafe { pools.set_arena_allocator(record) });
    }

    /// Calls `hook` before each new arena, with the counts as of then; `None` stops that.
    ///
    /// This is the moment at which `PYTHONMALLOCSTATS` prints. The hook must not use the domains.
    pub fn set_new_arena_hook(self, hook: Option<fn(&PoolStats)>) {
        either!(&self.backends().pools, pools => pools.set_new_arena_hook(hook));
    }
}
