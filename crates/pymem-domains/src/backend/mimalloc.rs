//! Owns which of mimalloc's heaps serve one set of domains, and what they tell.

use core::ffi::c_void;
use core::ptr;

use libmimalloc_sys::{mi_heap_area_t, mi_heap_t, mi_option_t};
use malloc_api::{AllocatorRecord, Domain, ReleaseLevel};
use mimalloc_heaps::{HeapError, InterpreterHeaps, MiMalloc, ThreadMalloc, World};

use super::Serve;
use crate::heap_stats::HeapStats;
use crate::process;
use crate::profile::{Build, Profile};

/// `mi_option_allow_thp`, which the binding does not name.
const ALLOW_THP: mi_option_t = 43;

static PLAIN: MiMalloc = MiMalloc;
static MEM: ThreadMalloc = ThreadMalloc::MEM;
static CURRENT: ThreadMalloc = ThreadMalloc::CURRENT;

/// mimalloc for each domain: plain functions with a global lock and for raw, the thread's own heaps without.
#[derive(Debug)]
pub(crate) struct Heaps {
    profile: Profile,
}

impl Heaps {
    pub(crate) const fn new(profile: Profile) -> Self {
        Self { profile }
    }

    /// What the heaps hold; `None` while the process has other threads, which may be using theirs.
    pub(crate) fn stats_if_alone(&self) -> Option<HeapStats> {
        // Only this thread could start another one.
        if process::is_only_thread() { self.stats(&Alone).ok() } else { None }
    }

    /// What the heaps of every thread hold; stops `world` meanwhile.
    pub(crate) fn stats<W: World + ?Sized>(&self, world: &W) -> Result<HeapStats, HeapError> {
        let empty = HeapStats::new(self.profile.version());
        match self.profile.build() {
            Build::Gil => Ok(plain_stats(empty, world)),
            Build::FreeThreaded => {
                let usage = InterpreterHeaps::main()?.statistics(world).total();
                Ok(HeapStats {
                    allocated_blocks: usage.blocks,
                    allocated_bytes: usage.block_bytes,
                    allocated_bytes_with_overhead: usage.block_bytes,
                    reserved_bytes: usage.reserved_bytes,
                    committed_bytes: usage.committed_bytes,
                    ..empty
                })
            }
        }
    }

    /// Gives back what the heaps of every thread keep, where threads have heaps of their own; stops `world` meanwhile.
    pub(crate) fn release_in<W: World + ?Sized>(
        &self,
        world: &W,
        level: ReleaseLevel,
    ) -> Result<usize, HeapError> {
        match self.profile.build() {
            Build::Gil => Ok(0),
            Build::FreeThreaded => Ok(InterpreterHeaps::main()?.release(world, level)),
        }
    }

    pub(crate) fn version(&self) -> Option<String> {
        // SAFETY: no preconditions.
        let version = unsafe { libmimalloc_sys::mi_version() };
        Some(format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100))
    }
}

impl Serve for Heaps {
    /// Objects: the heap of the kind that the thread has chosen, at first that of objects without the collector.
    fn record(&'static self, domain: Domain) -> Option<AllocatorRecord> {
        Some(match (self.profile.build(), domain) {
            (Build::Gil, _) | (Build::FreeThreaded, Domain::Raw) => AllocatorRecord::new(&PLAIN),
            (Build::FreeThreaded, Domain::Mem) => AllocatorRecord::new(&MEM),
            (Build::FreeThreaded, Domain::Obj) => AllocatorRecord::new(&CURRENT),
        })
    }

    /// Switches huge pages off, as CPython's build of mimalloc does: with them, a small program holds twice the memory.
    ///
    /// Set once mimalloc has started, the option concerns mimalloc alone. Before, and with the variable `MIMALLOC_ALLOW_THP`, mimalloc
    /// forbids huge pages to the whole process and its children. And no thread that gives memory back is there in a fork; without
    /// memory for handlers there is none at all, and a child may find a mutex of mimalloc's locked.
    fn prepare(&self) {
        if mimalloc_heaps::hold_over_forks().is_err() {
            mimalloc_heaps::allow_background_thread(false);
        }
        // SAFETY: an option of 3.3.2, which each new arena looks at.
        unsafe { libmimalloc_sys::mi_option_set(ALLOW_THP, 0) };
    }

    fn allocated_blocks(&self) -> Option<usize> {
        self.stats_if_alone().map(|stats| stats.allocated_blocks)
    }

    /// Gives back what the calling thread keeps.
    fn release(&self, level: ReleaseLevel) -> usize {
        match level {
            ReleaseLevel::Arenas => 0,
            ReleaseLevel::Pools | ReleaseLevel::Pages => process::shrinks_by(|| {
                // SAFETY: collects the calling thread's heaps, in which it is not at the moment.
                unsafe { libmimalloc_sys::mi_collect(level == ReleaseLevel::Pages) };
            }),
        }
    }
}

/// A world of one thread, which is the caller.
struct Alone;

// SAFETY: 1-3: `stats_if_alone`, the only place that makes one, has seen that there is no other thread, and none can come
// while this one waits.
unsafe impl World for Alone {
    fn stop(&self) {}

    unsafe fn start(&self) {}
}

/// `stats` and what the default heaps of all threads hold, those that have exited included; stops `world` meanwhile.
fn plain_stats<W: World + ?Sized>(mut stats: HeapStats, world: &W) -> HeapStats {
    world.stop();
    // SAFETY: null stands for the heap that the default heaps are parts of; the world stands still, and the visitor takes
    // what it is given.
    unsafe {
        libmimalloc_sys::mi_heap_visit_blocks(
            ptr::null_mut(),
            true,
            Some(count),
            (&raw mut stats).cast(),
        )
    };
    // SAFETY: (1) stopped above.
    unsafe { world.start() };
    stats
}

/// Called by mimalloc with a null block for each page, then with each live block of it. Goes on to the end.
///
/// # Safety
///
/// 1. `area` is filled, and `stats` points to a `HeapStats` that nobody else uses.
unsafe extern "C" fn count(
    _heap: *const mi_heap_t,
    area: *const mi_heap_area_t,
    block: *mut c_void,
    bytes: usize,
    stats: *mut c_void,
) -> bool {
    // SAFETY: by duty 1.
    let stats = unsafe { &mut *stats.cast::<HeapStats>() };
    if block.is_null() {
        // SAFETY: by duty 1.
        let area = unsafe { &*area };
        stats.reserved_bytes += area.reserved;
        stats.committed_bytes += area.committed;
    } else {
        stats.allocated_blocks += 1;
        stats.allocated_bytes += bytes;
        stats.allocated_bytes_with_overhead += bytes;
    }
    true
}
