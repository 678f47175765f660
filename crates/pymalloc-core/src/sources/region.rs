//! Owns the usual source of arenas, and the process's region behind it: one long range of reserved addresses from which
//! the arenas of every allocator come. Leaves the system calls to `mmap.rs`.
//!
//! The region is reserved at the first need, as long as the system allows, and never returned.

use core::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::config::{ARENA_BYTES, ARENA_SHIFT, HUGE_PAGE_BYTES};
use crate::policy::{COMMIT_ARENAS, HUGE_AFTER_BYTES, HUGE_REFUSALS_MAX};
use crate::source::{ArenaSource, Span};
use crate::sources::mmap;

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
    /// Transparent ones for an allocator that holds 2 MiB already, where the system allows them (`madvise` or `always`).
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

/// Bytes that are asked for first: 64 GiB of addresses, where a pointer can hold them.
const REGION_BYTES_MAX: usize = 1 << if usize::BITS >= 64 { 36 } else { 28 };

/// Bytes below which a region is not worth having.
const REGION_BYTES_MIN: usize = 64 << 20;

/// Alignment of the region: that of a huge page, so that arenas pair up in them.
const REGION_ALIGN: usize = HUGE_PAGE_BYTES;

const ARENAS_MAX: usize = REGION_BYTES_MAX >> ARENA_SHIFT;

/// The reserved range, or what stands for "none".
struct Region {
    span: Span,
}

// SAFETY: the range is plain memory; who may use which arena of it is settled by `SLOTS`.
unsafe impl Send for Region {}
// SAFETY: as above; the value itself never changes.
unsafe impl Sync for Region {}

static REGION: OnceLock<Option<Region>> = OnceLock::new();
static SLOTS: Mutex<Slots> = Mutex::new(Slots {
    taken: Bits::EMPTY,
    warm: Bits::EMPTY,
    reserved: Bits::EMPTY,
    first: 0,
    committed: 0,
    refusals: 0,
});

/// Which arenas of the region are taken.
struct Slots {
    taken: Bits,
    /// Arenas that are free and resident: the other halves of huge pages.
    warm: Bits,
    /// Arenas in reserved huge pages, free ones too: the kernel drops no part of such a page, and does not say so.
    reserved: Bits,
    /// Invariant 1: every word of `taken` before this one is full.
    first: usize,
    /// Arenas that have been made readable and writable: those below this number.
    committed: usize,
    /// Huge pages that the system refused.
    refusals: u8,
}

/// The reserved range; `None` if the system has no addresses for one.
pub(crate) fn span() -> Option<Span> {
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

/// A set of arenas.
struct Bits([u64; ARENAS_MAX / 64]);

impl Bits {
    const EMPTY: Self = Self([0; ARENAS_MAX / 64]);

    fn has(&self, index: usize) -> bool {
        self.0[index / 64] >> (index % 64) & 1 == 1
    }

    fn insert(&mut self, index: usize) {
        self.0[index / 64] |= 1 << (index % 64);
    }

    /// Takes `index` out; was it in?
    fn remove(&mut self, index: usize) -> bool {
        let was = self.has(index);
        self.0[index / 64] &= !(1 << (index % 64));
        was
    }
}

impl Slots {
    /// Takes the lowest free arena of `limit`.
    fn take(&mut self, limit: usize) -> Option<usize> {
        let words = limit.div_ceil(64);
        let word = (self.first..words).find(|word| self.taken.0[*word] != u64::MAX)?;
        self.first = word;
        let index = word * 64 + self.taken.0[word].trailing_ones() as usize;
        if index >= limit {
            return None;
        }
        self.taken.insert(index);
        Some(index)
    }

    fn give(&mut self, index: usize) {
        self.taken.remove(index);
        self.first = self.first.min(index / 64);
    }

    /// Never gives out `index` and its buddy again: there may be nothing behind their addresses.
    fn lose_pair(&mut self, index: usize) {
        self.taken.insert(index);
        self.taken.insert(buddy(index));
    }

    /// Makes `index`, which is taken, readable and writable with its neighbours; `false` if there is no memory.
    fn commit(&mut self, span: Span, index: usize) -> bool {
        if index < self.committed {
            return true;
        }
        // Each call changes the process's list of mappings, so it is worth a few arenas; they cost no memory yet.
        let arenas = COMMIT_ARENAS.min((span.bytes >> ARENA_SHIFT) - index);
        // SAFETY: arenas of the reserved range.
        let done = unsafe { mmap::commit(address(span, index), arenas << ARENA_SHIFT) };
        if done {
            self.committed = index + arenas;
        }
        done
    }

    /// Tries to put a huge page behind `index`, which is taken, and its buddy: has it one now? `None` if the pair is lost.
    fn fault_huge(&mut self, span: Span, index: usize, huge_pages: HugePages) -> Option<bool> {
        let buddy = buddy(index);
        if self.refusals >= HUGE_REFUSALS_MAX || self.taken.has(buddy) || buddy >= self.committed {
            return Some(false);
        }
        let pair = address(span, index & !1);
        let done = match huge_pages {
            HugePages::Never => return Some(false),
            // SAFETY: the pair is committed, `index` belongs to the caller and nobody has the buddy.
            HugePages::Madvise => unsafe { mmap::fault_huge_page(pair) },
            // SAFETY: as above; the region is aligned to a huge page.
            HugePages::Hugetlb => unsafe { mmap::map_reserved_huge_page(pair)? },
        };
        if !done {
            self.refusals += 1;
            return Some(false);
        }
        self.warm.insert(buddy);
        if huge_pages == HugePages::Hugetlb {
            self.reserved.insert(index);
            self.reserved.insert(buddy);
        }
        Some(true)
    }
}

/// The arena that shares a huge page with `index`.
const fn buddy(index: usize) -> usize {
    index ^ 1
}

/// Where arena `index` of the region begins.
fn address(span: Span, index: usize) -> NonNull<u8> {
    debug_assert!(index < span.bytes >> ARENA_SHIFT, "an arena beyond the region");
    // SAFETY: every index that `take` gives, and its buddy, is below the region's even number of arenas.
    unsafe { span.base.add(index << ARENA_SHIFT) }
}

/// An arena, and whether all of it is resident; `None` if there is no memory, or no arena left.
pub(crate) fn take(span: Span, huge_pages: HugePages) -> Option<(NonNull<u8>, bool)> {
    let mut slots = slots();
    let index = slots.take(span.bytes >> ARENA_SHIFT)?;
    if !slots.commit(span, index) {
        slots.give(index);
        return None;
    }
    if slots.warm.remove(index) {
        return Some((address(span, index), true));
    }
    let Some(resident) = slots.fault_huge(span, index, huge_pages) else {
        slots.lose_pair(index);
        return None;
    };
    Some((address(span, index), resident))
}

/// Takes arena `index` back, with its huge page if the other half of that is free.
///
/// # Safety
///
/// 1. The arena is taken, and nobody uses it any more.
pub(crate) unsafe fn give_back(span: Span, index: usize) {
    // Under the lock throughout, or the next owner could lose what it wrote.
    let mut slots = slots();
    if slots.taken.has(buddy(index)) || buddy(index) >= slots.committed {
        let arena = address(span, index);
        let is_dropped = !slots.reserved.has(index)
            // SAFETY: 1.
            && unsafe { mmap::purge(arena, ARENA_BYTES) } == ARENA_BYTES;
        if !is_dropped {
            // `IS_ZEROED` holds all the same.
            // SAFETY: 1.
            unsafe { arena.write_bytes(0, ARENA_BYTES) };
        }
        slots.give(index);
        return;
    }
    // SAFETY: 1; the buddy is free.
    if unsafe { mmap::renew(address(span, index & !1), HUGE_PAGE_BYTES) } {
        slots.warm.remove(buddy(index));
        slots.reserved.remove(index);
        slots.reserved.remove(buddy(index));
        slots.give(index);
    } else {
        slots.lose_pair(index);
    }
}

/// The number of the arena in which `address` lies; `None` outside of the region.
pub(crate) fn index_of(span: Span, address: NonNull<u8>) -> Option<usize> {
    let offset = address.addr().get().wrapping_sub(span.base.addr().get());
    (offset < span.bytes).then_some(offset >> ARENA_SHIFT)
}

/// Does `address` lie in a reserved huge page?
pub(crate) fn is_reserved(address: NonNull<u8>) -> bool {
    let index = span().and_then(|span| index_of(span, address));
    index.is_some_and(|index| slots().reserved.has(index))
}

// SAFETY: 1: `take` gives an arena once until `give_back`, and `map_arena` maps anew; 2: pages are zero when fresh and after
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
        let arena = span().and_then(|span| take(span, huge_pages));
        arena.or_else(|| Some((mmap::map_arena()?, false)))
    }

    unsafe fn free(&self, arena: NonNull<u8>, size: usize) {
        match span().and_then(|span| Some((span, index_of(span, arena)?))) {
            // SAFETY: the caller's duty 1.
            Some((span, index)) => unsafe { give_back(span, index) },
            // SAFETY: the caller's duty 1: `alloc` mapped it with this size.
            None => unsafe { mmap::unmap(arena, size) },
        }
    }

    fn span(&self) -> Option<Span> {
        span()
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
        if is_reserved(start) {
            return 0;
        }
        // SAFETY: the caller's duty 1; arenas are private anonymous memory.
        unsafe { mmap::purge(start, bytes) }
    }
}
