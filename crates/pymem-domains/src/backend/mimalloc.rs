//! Owns which mimalloc heaps serve one set of domains, and what only a build with mimalloc can ask of them.

use core::ffi::c_void;
use core::ptr;

use libmimalloc_sys::{mi_heap_area_t, mi_heap_t};
use mimalloc_heaps::{HeapError, InterpreterHeaps, MiMalloc, ThreadMalloc, Usage, World};

use crate::domains::Domains;
use crate::profile::Build;
use crate::stats::{HeapStats, Stats};
use crate::table::Backend;
use malloc_api::AllocatorRecord;
use malloc_api::ReleaseLevel;

static PLAIN: MiMalloc = MiMalloc;
static MEM: ThreadMalloc = ThreadMalloc::MEM;
static CURRENT: ThreadMalloc = ThreadMalloc::CURRENT;

/// mimalloc for each domain: plain functions with a global lock, the thread's own heaps without.
#[derive(Debug)]
pub(crate) struct Heaps {
    build: Build,
}

impl Heaps {
    pub(crate) const fn new(build: Build) -> Self {
        Self { build }
    }

    pub(crate) const fn raw(&self) -> Option<AllocatorRecord> {
        Some(AllocatorRecord::new(&PLAIN))
    }

    pub(crate) const fn mem(&self) -> Option<AllocatorRecord> {
        Some(match self.build {
            Build::Gil => AllocatorRecord::new(&PLAIN),
            Build::FreeThreaded => AllocatorRecord::new(&MEM),
        })
    }

    /// Objects: the heap of the kind that the thread has chosen, at first that of objects without the collector.
    pub(crate) const fn object(&self) -> Option<AllocatorRecord> {
        Some(match self.build {
            Build::Gil => AllocatorRecord::new(&PLAIN),
            Build::FreeThreaded => AllocatorRecord::new(&CURRENT),
        })
    }

    /// Gives back what the calling thread keeps.
    pub(crate) fn release(&self, level: ReleaseLevel) {
        // SAFETY: collects the calling thread's heaps, in which it is not at the moment.
        unsafe { libmimalloc_sys::mi_collect(level == ReleaseLevel::Pages) };
    }

    /// What the heaps hold.
    ///
    /// # Safety
    ///
    /// 1. The calling thread is the only one of the process.
    pub(crate) unsafe fn stats_of_lone_thread(&self) -> Option<HeapStats> {
        self.stats(&Alone).ok()
    }

    /// What the heaps of every thread hold; stops `world` meanwhile.
    fn stats<W: World + ?Sized>(&self, world: &W) -> Result<HeapStats, HeapError> {
        match self.build {
            Build::Gil => Ok(plain_stats(world)),
            Build::FreeThreaded => Ok(InterpreterHeaps::main()?.statistics(world).total().into()),
        }
    }

    pub(crate) fn version(&self) -> Option<String> {
        // SAFETY: no preconditions.
        let version = unsafe { libmimalloc_sys::mi_version() };
        Some(format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100))
    }
}

/// A world of one thread, which is the caller.
struct Alone;

// SAFETY: 1-3: there is no other thread (duty 1 of the only place that makes one), and none can come while this one waits.
unsafe impl World for Alone {
    fn stop(&self) {}

    fn start(&self) {}
}

/// What the default heaps of all threads hold, those that have exited included; stops `world` meanwhile.
fn plain_stats<W: World + ?Sized>(world: &W) -> HeapStats {
    let mut stats = HeapStats::default();
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
    world.start();
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

impl From<Usage> for HeapStats {
    fn from(usage: Usage) -> Self {
        Self {
            allocated_blocks: usage.blocks,
            allocated_bytes: usage.block_bytes,
            allocated_bytes_with_overhead: usage.block_bytes,
            reserved_bytes: usage.reserved_bytes,
            committed_bytes: usage.committed_bytes,
        }
    }
}

/// With the feature `mimalloc`.
impl Domains {
    /// [`Domains::stats`] with mimalloc's heaps; stops `world` meanwhile.
    ///
    /// In a free-threaded build they are those of every thread that is in no other interpreter. In a build with the GIL
    /// they are mimalloc's default heaps, which hold whatever the process takes from mimalloc. There a thread that exits
    /// counts as one that uses them, and blocks of more than 2 GiB are seen only after their thread has exited.
    ///
    /// # Errors
    ///
    /// What keeps the heaps from being there; see [`InterpreterHeaps::main`].
    pub fn stats_in<W: World + ?Sized>(self, world: &W) -> Result<Stats, HeapError> {
        let mut stats = self.stats_without_heaps();
        if self.uses(Backend::Mimalloc) {
            stats.mimalloc = Some(self.backends().heaps.stats(world)?);
        }
        Ok(stats)
    }

    /// [`Domains::allocated_blocks`] for mimalloc's heaps too, as [`stats_in`](Self::stats_in) sees them; stops `world`
    /// meanwhile.
    ///
    /// # Errors
    ///
    /// As [`Domains::stats_in`].
    pub fn allocated_blocks_in<W: World + ?Sized>(self, world: &W) -> Result<usize, HeapError> {
        if self.uses(Backend::Mimalloc) {
            Ok(self.backends().heaps.stats(world)?.allocated_blocks)
        } else {
            Ok(self.backends().pools.allocated_blocks())
        }
    }

    /// [`Domains::release`] for the mimalloc heaps of every thread; stops `world` meanwhile. Returns the bytes that went back.
    ///
    /// # Errors
    ///
    /// As [`Domains::stats_in`].
    pub fn release_in<W: World + ?Sized>(
        self,
        world: &W,
        level: ReleaseLevel,
    ) -> Result<usize, HeapError> {
        let heaps = if self.uses(Backend::Mimalloc) && self.profile().build() == Build::FreeThreaded
        {
            InterpreterHeaps::main()?.release(world, level)
        } else {
            0
        };
        Ok(heaps + self.release(level))
    }
}
