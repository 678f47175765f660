//! Owns the usual source of arenas, and the process's region behind it: one range of addresses in which the arenas of every
//! allocator lie. Leaves the system calls to `mmap.rs`.
//!
//! ```text
//!  base, at a place where nothing else is put
//!  v
//!  +---------+---------+ - - - - - - - - - +---------+---------+ - - - - - - - - - - - - - - - - - -+
//!  | arena 0 | arena 1 |  a free pair:     | arena 4 | free    |  not mapped: the next pair comes   |
//!  | taken   | taken   |  not mapped       | taken   |         |  where the first free place is     |
//!  +---------+---------+ - - - - - - - - - +---------+---------+ - - - - - - - - - - - - - - - - - -+
//!  |<-- huge page ---->|
//! ```
//!
//! Arenas are mapped and unmapped in pairs, each the size of a huge page. Only what is mapped counts against a limit on
//! addresses (`RLIMIT_AS`) and lands in a core file. Go's heap grows from a fixed place in the same way.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering};

use pymem_sync::{ForkLock, Lock, LockGuard, Rank, hold_over_forks};

use crate::config::{
    ARENA_BYTES, ARENA_SHIFT, ARENAS_MAX, HUGE_PAGE_BYTES, POOL_BYTES, POOL_SHIFT, REGION_BYTES_MAX,
};
use crate::policy::{HUGE_REFUSALS_MAX, Pace, REGION_HINTS, SMALL_UP_TO_BYTES};
use crate::source::{ArenaSource, Span, Supply};
use crate::sources::arena_sets::Set::{Mapped, Reserved, Taken, Warm};
use crate::sources::arena_sets::Sets;
use crate::sources::{mmap, purger, run_memory};

/// Arenas by `mmap`: from the process's region, and where that has no room from anywhere.
///
/// The region is shared by all allocators of the process. It takes the addresses of the arenas in use, rounded up to pairs.
/// An arena that is given back is dropped from memory at once, and its addresses with it if the other one of its pair is
/// free. Those of an [`Account`](malloc_api::Account) that ends with 2 MiB or more go as other free memory does, in the background, or
/// to who needs an arena before; their addresses stay for the next need.
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
    /// Transparent ones for an allocator that holds 2 MiB already and fills the next one within milliseconds, where the system allows
    /// them (`madvise` or `always`). What was given back and is needed again comes back in such pages too.
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

    /// Whether a thread may give free memory back in the background, from now on and for all allocators of the process; at first
    /// it may.
    ///
    /// What is free stays resident for two seconds, so that a program that needs it again meets no page fault, and goes within
    /// four. The thread starts when an allocator has 2 MiB to spare, and ends when nothing is left to give back; before a fork it
    /// ends at once. Without it, memory goes back in later calls, and stays in a process that makes none.
    pub fn allow_background_thread(is_allowed: bool) {
        purger::allow_thread(is_allowed);
    }
}

/// The process's region, and which of its arenas are taken.
#[repr(C)]
struct Region {
    /// A multiple of a huge page, so that arenas pair up in them; `None` until the first need.
    base: Option<NonNull<u8>>,
    /// Invariant 2: every arena of the words before this one is taken.
    first: usize,
    /// Invariant 3: from this word on no set has a member.
    end: usize,
    pace: Pace,
    /// Huge pages that the system refused.
    refusals: u8,
    /// Invariant 1: both arenas of a pair are mapped or none, and all that are taken are but for lost pairs.
    sets: Sets,
}

// SAFETY: `base` is an address in plain memory; the sets settle who may use which arena of it.
unsafe impl Send for Region {}

static REGION: Lock<Region> = Lock::new(Region::new());

static OVER_FORKS: ForkLock = ForkLock::new(Rank::Memory, &REGION);

/// The region, whose lock a forking thread holds: a child finds it whole.
fn region() -> LockGuard<'static, Region> {
    static IS_HELD: AtomicBool = AtomicBool::new(false);
    // Relaxed: whoever sees `false` too late registers the lock once more, which changes nothing.
    if !IS_HELD.load(Ordering::Relaxed) {
        // Without memory for handlers the process does without them, and the next call tries again.
        let is_held =
            purger::stop_before_forks().and_then(|()| hold_over_forks(&OVER_FORKS)).is_ok();
        IS_HELD.store(is_held, Ordering::Relaxed);
    }
    REGION.lock()
}

/// Where the region begins; `None` if the system has no place for it.
pub(crate) fn begin() -> Option<NonNull<u8>> {
    Some(region().span()?.base)
}

impl Region {
    const fn new() -> Self {
        Self { base: None, first: 0, end: 0, pace: Pace::new(), refusals: 0, sets: Sets::NONE }
    }

    /// The addresses that the region may have; `None` if the system has none where nothing else is put.
    fn span(&mut self) -> Option<Span> {
        if self.base.is_none() {
            let mut hints = REGION_HINTS.iter().map(|range| range.pick(mmap::random()));
            self.base = hints.find_map(|hint| mmap::map_at(hint, HUGE_PAGE_BYTES));
            self.sets.set_pair(Mapped, 0, self.base.is_some());
            self.end = 1;
            self.base.into_iter().for_each(purger::begin);
        }
        Some(Span { base: self.base?, bytes: REGION_BYTES_MAX })
    }

    /// An arena, and whether all of it is resident; `None` if there is no memory, or no arena left.
    fn take(&mut self, huge_pages: HugePages) -> Option<(NonNull<u8>, bool)> {
        let base = self.span()?.base;
        let lowest = self.lowest_free()?;
        let index = self.first_resident(base).unwrap_or(lowest);
        if self.is_pair_gone(base, index) {
            // SAFETY: 1: neither half is taken.
            unsafe { self.unmap_pair(base, index) };
            if self.sets.has(Taken, index) {
                return None;
            }
        }
        if !self.sets.has(Mapped, index) {
            mmap::map_at(address(base, index & !1).addr().get(), HUGE_PAGE_BYTES)?;
            self.sets.set_pair(Mapped, index, true);
        }
        self.sets.insert(Taken, index);
        if self.sets.remove(Warm, index) {
            let arena = address(base, index);
            if self.sets.has(Reserved, index) {
                return Some((arena, true));
            }
            let (left, mut unclean) = purger::take_all_back(arena);
            while unclean != 0 {
                let offset = (unclean.trailing_zeros() as usize) << POOL_SHIFT;
                unclean &= unclean - 1;
                let unit = arena.map_addr(|address| address.saturating_add(offset));
                // SAFETY: a unit of the arena, which nobody has.
                unsafe { unit.write_bytes(0, POOL_BYTES) };
            }
            return Some((arena, left == u64::MAX));
        }
        let Some(is_resident) = self.fault_huge_page(base, index, huge_pages) else {
            // Nobody gets this pair again: there may be nothing behind its addresses.
            self.sets.set_pair(Taken, index, true);
            return None;
        };
        Some((address(base, index), is_resident))
    }

    /// The lowest arena that nobody has.
    fn lowest_free(&mut self) -> Option<usize> {
        let is_full = |word| self.sets.word(Taken, word) == u64::MAX;
        self.first = (self.first..Sets::WORDS).find(|word| !is_full(*word))?;
        self.end = self.end.max(self.first + 1);
        Some(self.first * 64 + self.sets.word(Taken, self.first).trailing_ones() as usize)
    }

    /// The lowest free arena of which something is resident: that counts as much as if it were in use.
    fn first_resident(&self, base: NonNull<u8>) -> Option<usize> {
        let is_waiting = |index| purger::waiting(address(base, index), u64::MAX) != 0;
        let mut warm = self.sets.members(Warm, self.first..self.end);
        warm.find(|index| self.sets.has(Reserved, *index) || is_waiting(*index))
    }

    /// Tries to put a huge page behind `index`, which is taken, and its buddy: has it one now? `None` if the pair is lost.
    fn fault_huge_page(
        &mut self,
        base: NonNull<u8>,
        index: usize,
        huge_pages: HugePages,
    ) -> Option<bool> {
        let buddy = buddy(index);
        if self.refusals >= HUGE_REFUSALS_MAX || self.sets.has(Taken, buddy) {
            return Some(false);
        }
        let pair = address(base, index & !1);
        let done = match huge_pages {
            HugePages::Never => return Some(false),
            // SAFETY: 1: the pair is mapped, `index` belongs to the caller and nobody has the buddy.
            HugePages::Madvise => unsafe { mmap::fault_huge_page(pair) },
            // SAFETY: 1: as above; the region is aligned to a huge page.
            HugePages::Hugetlb => unsafe { mmap::map_reserved_huge_page(pair)? },
        };
        if !done {
            self.refusals += 1;
            return Some(false);
        }
        self.sets.insert(Warm, buddy);
        if huge_pages == HugePages::Hugetlb {
            self.sets.set_pair(Reserved, index, true);
        } else {
            purger::offer(address(base, buddy), u64::MAX, 0);
        }
        Some(true)
    }

    /// Puts a huge page behind arena `index`, which is taken, and its buddy, which the caller has too or nobody: is it there?
    ///
    /// # Safety
    ///
    /// 1. If `has_both`, the buddy is taken by the caller.
    unsafe fn regrow(&mut self, base: NonNull<u8>, index: usize, has_both: bool) -> bool {
        let buddy = buddy(index);
        if self.refusals >= HUGE_REFUSALS_MAX || self.sets.has(Taken, buddy) != has_both {
            return false;
        }
        // SAFETY: 1: the pair is mapped, as `index` is taken (invariant 1), and aligned to a huge page.
        if !unsafe { mmap::collapse(address(base, index & !1)) } {
            self.refusals += 1;
            return false;
        }
        if !has_both {
            self.sets.insert(Warm, buddy);
            purger::offer(address(base, buddy), u64::MAX, 0);
        }
        true
    }

    /// Takes arena `index` back, and unmaps its pair if the other half is free.
    ///
    /// # Safety
    ///
    /// 1. The arena is taken, and nobody uses it any more.
    unsafe fn give_back(&mut self, base: NonNull<u8>, index: usize) {
        self.sets.remove(Taken, index);
        self.first = self.first.min(index / 64);
        if self.sets.has(Taken, buddy(index)) {
            let arena = address(base, index);
            let is_dropped = !self.sets.has(Reserved, index)
                // SAFETY: 1: by 1.
                && unsafe { mmap::purge(arena, ARENA_BYTES) } == ARENA_BYTES;
            if !is_dropped {
                // `IS_ZEROED` holds all the same.
                // SAFETY: by 1, all of it is ours.
                unsafe { arena.write_bytes(0, ARENA_BYTES) };
            }
            return;
        }
        // SAFETY: 1: neither half is taken.
        unsafe { self.unmap_pair(base, index) };
    }

    /// Takes arena `index` back for the purger, which has `spare_bytes` of its allocator; else as [`give_back`](Self::give_back).
    ///
    /// # Safety
    ///
    /// 1. The arena is taken, and nobody uses it any more.
    /// 2. All but `units` of it is zero, and none of these is offered.
    unsafe fn give_back_later(
        &mut self,
        base: NonNull<u8>,
        index: usize,
        units: u64,
        spare_bytes: usize,
    ) {
        if self.sets.has(Reserved, index)
            || !purger::offer_dead(address(base, index), units, spare_bytes)
        {
            // SAFETY: 1: by 1.
            return unsafe { self.give_back(base, index) };
        }
        self.sets.remove(Taken, index);
        self.first = self.first.min(index / 64);
        self.sets.insert(Warm, index);
    }

    /// Whether both arenas of the pair of `index`, which is free, are the purger's, and have gone: a new pair may be a huge page.
    fn is_pair_gone(&self, base: NonNull<u8>, index: usize) -> bool {
        [index, buddy(index)].iter().all(|index| {
            self.sets.has(Warm, *index)
                && !self.sets.has(Reserved, *index)
                && purger::waiting(address(base, *index), u64::MAX) == 0
        })
    }

    /// Unmaps the pair of `index`.
    ///
    /// # Safety
    ///
    /// 1. Both of its arenas are mapped, and nobody uses them any more.
    unsafe fn unmap_pair(&mut self, base: NonNull<u8>, index: usize) {
        for index in [index, buddy(index)] {
            if self.sets.remove(Warm, index) {
                purger::take_all_back(address(base, index));
            }
        }
        let pair = address(base, index & !1);
        // SAFETY: 1: by 1.
        if unsafe { mmap::unmap(pair, HUGE_PAGE_BYTES) } {
            self.sets.set_pair(Mapped, index, false);
            self.sets.set_pair(Reserved, index, false);
        // The kernel has too many mappings to make two of one. The pair stays, if its memory goes.
        } else if self.sets.has(Reserved, index)
            // SAFETY: 1: by 1.
            || unsafe { mmap::purge(pair, HUGE_PAGE_BYTES) } != HUGE_PAGE_BYTES
        {
            self.sets.set_pair(Taken, index, true);
        }
    }

    /// The region's base, and the number of the arena in which `address` lies; `None` if the region did not give
    /// it out.
    fn index_of(&self, address: NonNull<u8>) -> Option<(NonNull<u8>, usize)> {
        let base = self.base?;
        let index = address.addr().get().wrapping_sub(base.addr().get()) >> ARENA_SHIFT;
        (index < ARENAS_MAX && self.sets.has(Taken, index)).then_some((base, index))
    }
}

/// Where arena `index` of the region begins.
fn address(base: NonNull<u8>, index: usize) -> NonNull<u8> {
    base.map_addr(|address| address.saturating_add(index << ARENA_SHIFT))
}

/// The arena that shares a huge page with `index`.
const fn buddy(index: usize) -> usize {
    index ^ 1
}

// SAFETY: 1: `take` gives an arena once until `give_back`, and a mapping of its own is new; 2: pages are zero when fresh and after
// `purge`, which drops all of them; 3: the base stays, arenas are aligned to their size, and between them are arenas; 4: a
// new mapping; 5: populating keeps bytes, `purge` shrinks to whole pages of the range; 6: system calls and a lock
// alone.
unsafe impl ArenaSource for MmapArenas {
    const IS_ZEROED: bool = true;

    fn alloc(&self, size: usize) -> Option<NonNull<u8>> {
        if size != ARENA_BYTES {
            return mmap::map_sparse(size);
        }
        Some(self.alloc_for(size, 0, 0)?.0)
    }

    fn alloc_for(&self, size: usize, held: usize, missed: usize) -> Option<(NonNull<u8>, Supply)> {
        if size != ARENA_BYTES {
            return Some((mmap::map_sparse(size)?, Supply::Sparse));
        }
        let now = mmap::cpu_nanos();
        // Not under the region's lock: at the peak, what is free elsewhere gives way.
        run_memory::make_room();
        let mut region = region();
        // What a huge page held before, it holds again.
        let is_hasty =
            region.pace.is_hasty(now) && held >= SMALL_UP_TO_BYTES || missed >= HUGE_PAGE_BYTES;
        let (huge_pages, supply) = match (is_hasty, self.huge_pages) {
            (false, HugePages::Madvise) => (HugePages::Never, Supply::Sparse),
            (false, mode) => (mode, Supply::Sparse),
            (true, mode) => (mode, Supply::Ahead),
        };
        let taken = region.take(huge_pages);
        drop(region);
        match taken {
            Some((arena, true)) => Some((arena, Supply::Resident)),
            Some((arena, false)) => Some((arena, supply)),
            None => Some((mmap::map_aligned(ARENA_BYTES, ARENA_BYTES)?, supply)),
        }
    }

    unsafe fn free(&self, arena: NonNull<u8>, size: usize) {
        // Under the lock throughout, or the next owner could lose what it wrote.
        let mut region = region();
        match region.index_of(arena) {
            // SAFETY: 1: the caller's, and `index_of` says that the arena is taken.
            Some((base, index)) => unsafe { region.give_back(base, index) },
            None => {
                // SAFETY: 1: `alloc` mapped it with this size.
                let _ = unsafe { mmap::unmap(arena, size) };
            }
        }
    }

    unsafe fn free_later(&self, arena: NonNull<u8>, units: u64, spare_bytes: usize) {
        let mut region = region();
        match region.index_of(arena) {
            // SAFETY: 1: the caller's 1, and `index_of` says that the arena is taken; 2: the caller's 2.
            Some((base, index)) => unsafe {
                region.give_back_later(base, index, units, spare_bytes);
            },
            None => {
                // SAFETY: 1: `alloc` mapped it with this size.
                let _ = unsafe { mmap::unmap(arena, ARENA_BYTES) };
            }
        }
    }

    fn span(&self) -> Option<Span> {
        region().span()
    }

    fn alloc_table(&self, bytes: usize) -> Option<NonNull<u8>> {
        mmap::map_sparse(bytes)
    }

    unsafe fn free_table(&self, table: NonNull<u8>, bytes: usize) {
        // SAFETY: 1: the caller's.
        unsafe { mmap::unmap(table, bytes) };
    }

    unsafe fn populate(&self, start: NonNull<u8>, bytes: usize) {
        // SAFETY: 1: by the caller's, in an arena, which is mapped, readable and writable.
        unsafe { mmap::populate(start, bytes) };
    }

    unsafe fn regrow(&self, arena: NonNull<u8>, has_both: bool) -> bool {
        if self.huge_pages != HugePages::Madvise {
            return false;
        }
        let mut region = region();
        let place = region.index_of(arena);
        // SAFETY: 1: the caller's.
        place.is_some_and(|(base, index)| unsafe { region.regrow(base, index, has_both) })
    }

    unsafe fn purge(&self, start: NonNull<u8>, bytes: usize) -> usize {
        let region = region();
        if region.index_of(start).is_some_and(|(_, index)| region.sets.has(Reserved, index)) {
            return 0;
        }
        drop(region);
        // SAFETY: 1: the caller's; arenas are private anonymous memory.
        unsafe { mmap::purge(start, bytes) }
    }

    unsafe fn offer(&self, arena: NonNull<u8>, units: u64, spare_bytes: usize) {
        // No part of a reserved huge page goes back.
        if self.huge_pages != HugePages::Hugetlb {
            purger::offer(arena, units, spare_bytes);
        }
    }

    fn take_back(&self, arena: NonNull<u8>, units: u64) -> u64 {
        match self.huge_pages {
            HugePages::Hugetlb => units,
            _ => purger::take_back(arena, units),
        }
    }

    fn waiting(&self, arena: NonNull<u8>, units: u64) -> u64 {
        match self.huge_pages {
            HugePages::Hugetlb => units,
            _ => purger::waiting(arena, units),
        }
    }

    fn peak_bytes(&self) -> usize {
        mmap::peak_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_arena_and_the_lowest_resident_one_are_found_in_any_word() {
        let mut region = Region::new();
        (0..130).for_each(|index| region.sets.insert(Taken, index));
        assert_eq!(region.lowest_free(), Some(130));
        assert_eq!(region.first_resident(NonNull::dangling()), None);
        for index in [140, 133] {
            region.sets.insert(Warm, index);
            region.sets.insert(Reserved, index);
        }
        assert_eq!(region.first_resident(NonNull::dangling()), Some(133));
        assert!(region.sets.remove(Warm, 133) && !region.sets.has(Warm, 133));
        assert_eq!(region.first_resident(NonNull::dangling()), Some(140), "the sets are apart");
        region.sets.set_pair(Taken, 17, false);
        region.first = 0;
        assert_eq!(region.lowest_free(), Some(16));
    }
}
