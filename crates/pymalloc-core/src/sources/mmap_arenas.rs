//! Owns the usual source of arenas: the process's region, and single mappings where that is exhausted.

use core::ptr::NonNull;

use crate::config::ARENA_BYTES;
use crate::source::{ArenaSource, Span};
use crate::sources::mmap;
use crate::sources::region;

/// Bytes of arenas that an allocator holds before it gets huge pages: a small program does not pay for the half of
/// one that it would leave unused on average.
const HUGE_AFTER_BYTES: usize = 2 << 20;

/// Arenas by `mmap`: from the process's region, and where that is exhausted from anywhere.
///
/// The region is shared by all allocators of the process and takes addresses, not memory: at most 64 GiB of them, less
/// under `ulimit -v`. An arena that is given back is dropped from memory at once.
#[derive(Clone, Copy, Debug, Default)]
pub struct MmapArenas {
    huge_pages: HugePages,
}

/// Whether arenas may lie in huge pages: two neighbours in one.
///
/// A huge page takes a quarter of the time of its 512 small ones, and spares the processor's address cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HugePages {
    /// Never, whatever the system's default.
    Never,
    /// Transparent ones for an allocator that holds 4 MiB already, where the system allows them (`madvise` or `always`).
    /// Each is asked for once: memory that was given back stays so.
    #[default]
    Madvise,
    /// From the system's pool of reserved huge pages (`MAP_HUGETLB`), as long as that lasts, then as with `Never`. Such a
    /// page goes back when both of its arenas are free, not earlier and not in parts.
    Hugetlb,
}

impl MmapArenas {
    /// The source with huge pages by advice.
    #[must_use]
    pub const fn new() -> Self {
        Self { huge_pages: HugePages::Madvise }
    }

    /// The source with huge pages as said.
    #[must_use]
    pub const fn with_huge_pages(huge_pages: HugePages) -> Self {
        Self { huge_pages }
    }
}

// SAFETY: 1: `take` gives an arena once until `give`, and `map_arena` maps anew; 2: pages are zero when fresh and after
// `purge`, which drops all of them; 3: the region never changes and its slots are aligned arenas; 4: a new
// mapping; 5: `MADV_POPULATE_WRITE` keeps bytes, `purge` shrinks to whole pages of the range; 6: system calls and std's
// futex locks alone.
unsafe impl ArenaSource for MmapArenas {
    const IS_ZEROED: bool = true;

    fn alloc(&self, size: usize) -> Option<NonNull<u8>> {
        if size != ARENA_BYTES {
            return mmap::map_sparse(size);
        }
        Some(self.alloc_for(size, 0)?.0)
    }

    fn alloc_for(&self, size: usize, held: usize) -> Option<(NonNull<u8>, bool)> {
        if size != ARENA_BYTES {
            return Some((mmap::map_sparse(size)?, false));
        }
        let huge_pages = match self.huge_pages {
            HugePages::Madvise if held < HUGE_AFTER_BYTES => HugePages::Never,
            mode => mode,
        };
        let arena = region::span().and_then(|span| region::take(span, huge_pages));
        arena.or_else(|| Some((mmap::map_arena()?, false)))
    }

    unsafe fn free(&self, arena: NonNull<u8>, size: usize) {
        match region::span().and_then(|span| Some((span, region::index_of(span, arena)?))) {
            // SAFETY: the caller's duty 1.
            Some((span, index)) => unsafe { region::give_back(span, index) },
            // SAFETY: the caller's duty 1: `alloc` mapped it with this size.
            None => unsafe { mmap::unmap(arena, size) },
        }
    }

    fn span(&self) -> Option<Span> {
        region::span()
    }

    fn alloc_table(&self, bytes: usize) -> Option<NonNull<u8>> {
        mmap::map_sparse(bytes)
    }

    unsafe fn free_table(&self, table: NonNull<u8>, bytes: usize) {
        // SAFETY: the caller's duty 1.
        unsafe { mmap::unmap(table, bytes) };
    }

    unsafe fn populate(&self, start: NonNull<u8>, bytes: usize) {
        // SAFETY: the caller's duty 1: in an arena, which is mapped, readable and writable.
        unsafe { mmap::populate(start, bytes) };
    }

    unsafe fn purge(&self, start: NonNull<u8>, bytes: usize) -> usize {
        if region::is_reserved(start) {
            return 0;
        }
        // SAFETY: the caller's duty 1; arenas are private anonymous memory.
        unsafe { mmap::purge(start, bytes) }
    }
}
