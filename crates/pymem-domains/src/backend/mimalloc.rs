//! Owns which mimalloc heaps serve one set of domains, and what only a build with mimalloc can ask of them.

use mimalloc_heaps::{HeapError, InterpreterHeaps, Level, MiMalloc, ThreadMalloc, Usage, World};

use crate::domains::Domains;
use crate::profile::Build;
use crate::record::AllocatorRecord;
use crate::release::ReleaseLevel;
use crate::stats::{HeapStats, Stats};
use crate::table::Backend;

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

    pub(crate) fn version(&self) -> Option<String> {
        // SAFETY: no preconditions.
        let version = unsafe { libmimalloc_sys::mi_version() };
        Some(format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100))
    }
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
    /// [`Domains::stats`] with mimalloc's heaps, of every thread that is in no other interpreter; stops `world` meanwhile.
    ///
    /// A GIL build's plain mimalloc has no heaps of its own to visit, so its part stays `None`.
    ///
    /// # Errors
    ///
    /// What keeps the heaps from being there; see [`InterpreterHeaps::main`].
    pub fn stats_in<W: World + ?Sized>(self, world: &W) -> Result<Stats, HeapError> {
        let mut stats = self.stats();
        if self.has_heaps() {
            stats.mimalloc = Some(InterpreterHeaps::main()?.statistics(world).total().into());
        }
        Ok(stats)
    }

    /// [`Domains::allocated_blocks`] for mimalloc's heaps too; stops `world` meanwhile.
    ///
    /// # Errors
    ///
    /// As [`Domains::stats_in`].
    pub fn allocated_blocks_in<W: World + ?Sized>(
        self,
        world: &W,
    ) -> Result<Option<usize>, HeapError> {
        let heaps = self.stats_in(world)?.mimalloc.map(|heaps| heaps.allocated_blocks);
        Ok(heaps.or_else(|| self.allocated_blocks()))
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
        let heaps = if self.has_heaps() {
            let level = if level == ReleaseLevel::Pages { Level::All } else { Level::Due };
            InterpreterHeaps::main()?.release(world, level)
        } else {
            0
        };
        Ok(heaps + self.release(level))
    }

    /// Whether the domains use the threads' own heaps.
    fn has_heaps(self) -> bool {
        self.uses(Backend::Mimalloc) && self.profile().build() == Build::FreeThreaded
    }
}
