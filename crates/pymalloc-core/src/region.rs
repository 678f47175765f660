//! Owns the process's region: one long range of reserved addresses from which the arenas of every allocator come.
//!
//! It is reserved at the first need, as long as the system lets it be, and never returned.

use core::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::config::{ARENA_BYTES, ARENA_SHIFT};
use crate::mmap;
use crate::source::{ArenaSource, Span};

/// Bytes that are asked for first: 64 GiB of addresses, where a pointer can hold them.
const REGION_BYTES_MAX: usize = 1 << if usize::BITS >= 64 { 36 } else { 28 };

/// Bytes below which a region is not worth having.
const REGION_BYTES_MIN: usize = 64 << 20;

/// Alignment of the region: that of a huge page, so that arenas pair up in them.
const REGION_ALIGN: usize = 2 << 20;

/// Arenas that are made readable and writable at a time.
const COMMIT_ARENAS: usize = 32;

const ARENAS_MAX: usize = REGION_BYTES_MAX >> ARENA_SHIFT;

/// Arenas by `mmap`: from the process's region, and where that is exhausted from anywhere.
///
/// The region is shared by all allocators of the process and takes addresses, not memory: at most 64 GiB of them, less
/// under `ulimit -v`. An arena that is given back is dropped from memory at once.
#[derive(Clone, Copy, Debug, Default)]
pub struct MmapArenas {
    huge_pages: HugePages,
}

/// Whether arenas may lie in huge pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HugePages {
    /// Never, whatever the system's default: huge pages can stall on compaction and raise the memory held.
    #[default]
    Never,
    /// Arenas are advised into transparent huge pages; two neighbours share one.
    Madvise,
    /// Arenas are taken from the pool of reserved huge pages (`MAP_HUGETLB`) if the system has some of an arena's
    /// size, else as with `Never`. Where huge pages have 2 MiB, as on x86-64, an arena is too small for one.
    Hugetlb,
}

impl MmapArenas {
    /// The source with huge pages off.
    #[must_use]
    pub const fn new() -> Self {
        Self { huge_pages: HugePages::Never }
    }

    /// The source with huge pages as said.
    #[must_use]
    pub const fn with_huge_pages(huge_pages: HugePages) -> Self {
        Self { huge_pages }
    }
}

/// The reserved range, or what stands for "none".
struct Region {
    span: Span,
}

// SAFETY: the range is plain memory; who may use which arena of it is settled by `SLOTS`.
unsafe impl Send for Region {}
// SAFETY: as above; the value itself never changes.
unsafe impl Sync for Region {}

static REGION: OnceLock<Option<Region>> = OnceLock::new();
static SLOTS: Mutex<Slots> =
    Mutex::new(Slots { taken: [0; ARENAS_MAX / 64], first: 0, committed: 0 });

/// Which arenas of the region are taken.
struct Slots {
    /// A bit an arena.
    taken: [u64; ARENAS_MAX / 64],
    /// Invariant 1: every word before this one is full.
    first: usize,
    /// Arenas that have been made readable and writable: those below this number.
    committed: usize,
}

fn region() -> Option<Span> {
    let reserve = || {
        let mut bytes = REGION_BYTES_MAX;
        while bytes >= REGION_BYTES_MIN {
            if let Some(base) = mmap::reserve(bytes, REGION_ALIGN) {
                // SAFETY: the whole of a mapping made just now.
                unsafe { mmap::forbid_huge_pages(base, bytes) };
                return Some(Region { span: Span { base, bytes } });
            }
            bytes /= 2;
        }
        None
    };
    REGION.get_or_init(reserve).as_ref().map(|region| region.span)
}

fn slots() -> MutexGuard<'static, Slots> {
    SLOTS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Slots {
    /// Takes the lowest free arena of `limit`.
    fn take(&mut self, limit: usize) -> Option<usize> {
        let words = limit.div_ceil(64);
        let word = (self.first..words).find(|word| self.taken[*word] != u64::MAX)?;
        self.first = word;
        let index = word * 64 + self.taken[word].trailing_ones() as usize;
        if index >= limit {
            return None;
        }
        self.taken[word] |= 1 << (index % 64);
        Some(index)
    }

    fn give(&mut self, index: usize) {
        self.taken[index / 64] &= !(1 << (index % 64));
        self.first = self.first.min(index / 64);
    }
}

fn take_from(span: Span) -> Option<NonNull<u8>> {
    let mut slots = slots();
    let index = slots.take(span.bytes >> ARENA_SHIFT)?;
    // SAFETY: `index` is below the region's number of arenas.
    let arena = unsafe { span.base.add(index << ARENA_SHIFT) };
    if index >= slots.committed {
        // Each call changes the process's list of mappings, so it is worth a few arenas; they cost no memory yet.
        let arenas = COMMIT_ARENAS.min((span.bytes >> ARENA_SHIFT) - index);
        // SAFETY: arenas of the reserved range.
        if !unsafe { mmap::commit(arena, arenas << ARENA_SHIFT) } {
            slots.give(index);
            return None;
        }
        slots.committed = index + arenas;
    }
    Some(arena)
}

fn in_span(span: Span, address: NonNull<u8>) -> bool {
    address.addr().get().wrapping_sub(span.base.addr().get()) < span.bytes
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
        if self.huge_pages == HugePages::Hugetlb {
            if let Some(arena) = mmap::map_huge_arena() {
                return Some(arena);
            }
        }
        let arena = region().and_then(take_from).or_else(mmap::map_arena)?;
        if self.huge_pages == HugePages::Madvise {
            // SAFETY: an arena got just now.
            unsafe { mmap::advise_huge_pages(arena, ARENA_BYTES) };
        }
        Some(arena)
    }

    unsafe fn free(&self, arena: NonNull<u8>, size: usize) {
        match region().filter(|span| in_span(*span, arena)) {
            Some(span) => {
                // Purged before the slot is free, or its next owner could lose what it wrote.
                // SAFETY: the caller's duty 1: an arena of the region that nobody uses.
                unsafe { mmap::purge(arena, ARENA_BYTES) };
                slots().give((arena.addr().get() - span.base.addr().get()) >> ARENA_SHIFT);
            }
            // SAFETY: the caller's duty 1: `alloc` mapped it with this size.
            None => unsafe { mmap::unmap(arena, size) },
        }
    }

    fn span(&self) -> Option<Span> {
        region()
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
        // SAFETY: the caller's duty 1; arenas are private anonymous memory.
        unsafe { mmap::purge(start, bytes) }
    }
}
