//! Owns the way back: what memory can go back to the system, and how much of it at which price.

use core::ptr::NonNull;

use malloc_api::{Malloc, ReleaseLevel};

use crate::arena::ArenaPtr;
use crate::checks::annotate;
use crate::config::{ARENA_BYTES, PAGE_BYTES, POOL_BYTES};
use crate::policy::Kept;
use crate::pymalloc::Pymalloc;
use crate::size_class::SizeClass;
use crate::source::ArenaSource;

impl<R: Malloc, S: ArenaSource> Pymalloc<R, S> {
    /// Gives memory back to the system; returns the bytes given back.
    ///
    /// Live blocks are not touched. What goes back costs a page fault when it is needed again. Arenas that a record
    /// set at run time made go back as wholes only.
    pub fn release(&mut self, level: ReleaseLevel) -> usize {
        self.close_empty_pools();
        self.kept = Kept::new();
        let mut bytes = 0;
        while self.release_arena() {
            bytes += ARENA_BYTES;
        }
        if level >= ReleaseLevel::Pools {
            bytes += self.purge_free_pools(0);
        }
        if level >= ReleaseLevel::Pages {
            bytes += self.purge_free_pages();
        }
        bytes
    }

    /// Closes the pools that are kept although they have no live block.
    pub(crate) fn close_empty_pools(&mut self) {
        for class in SizeClass::all() {
            if let Some(pool) = self.used.first(class).filter(|pool| pool.live_blocks() == 0) {
                self.close_pool(class, pool);
            }
        }
    }

    /// Gives free memory back, whole arenas first, then pools of the emptiest ones, until at most `target` bytes of
    /// free pools are resident.
    #[cold]
    pub(crate) fn trim(&mut self, target: usize) {
        self.close_empty_pools();
        let before = self.arenas.resident_free_bytes();
        while self.arenas.resident_free_bytes() > target {
            if !self.release_arena() {
                break;
            }
        }
        self.purge_free_pools(target);
        self.kept.gave_back(before - self.arenas.resident_free_bytes());
    }

    /// Gives the emptiest arena back to its source; returns whether there was one.
    pub(crate) fn release_arena(&mut self) -> bool {
        let Some(arena) = self.arenas.remove_empty() else {
            return false;
        };
        self.map.remove(arena);
        self.return_arena(arena);
        true
    }

    /// Gives an arena that is in no list and in no map back to where it came from.
    pub(crate) fn return_arena(&self, arena: ArenaPtr) {
        let (address, from_source) = (arena.address(), arena.is_from_source());
        annotate::arena_closed(arena);
        match self.record {
            Some(record) => {
                // SAFETY: whoever set the record promised that it takes every arena that exists.
                unsafe { (record.free)(record.ctx, address.as_ptr().cast(), ARENA_BYTES) };
            }
            None => {
                debug_assert!(from_source, "a record cannot be unset");
                // SAFETY: the source made it with this size, and nothing leads to it any more.
                unsafe { self.source.free(address, ARENA_BYTES) };
            }
        }
    }

    /// Purges free pools, those of the emptiest arenas first, until at most `target` bytes of them are resident.
    pub(crate) fn purge_free_pools(&mut self, target: usize) -> usize {
        let mut bytes = 0;
        while self.arenas.resident_free_bytes() > target {
            let resident = |arena: &ArenaPtr| arena.is_from_source() && arena.resident_mask() != 0;
            let Some(arena) = self.arenas.emptiest_first().find(resident) else { break };
            let mask = arena.resident_mask();
            let mut units = mask;
            while units != 0 {
                // Neighbours go back in one call.
                let first = units.trailing_zeros() as usize;
                let count = (units >> first).trailing_ones() as usize;
                units &= units.wrapping_add(1 << first);
                let start = arena.unit_address(first);
                // SAFETY: free units of an arena that the source made: nothing in them is in use.
                bytes += unsafe { self.source.purge(start, count * POOL_BYTES) };
            }
            self.arenas.set_purged(arena, mask);
        }
        bytes
    }

    fn purge_free_pages(&mut self) -> usize {
        let mut bytes = 0;
        for arena in self.arenas.iter().filter(|arena| arena.is_from_source()) {
            for unit in arena.open_units() {
                let pool = arena.pool(unit);
                let Some(class) = pool.class() else { continue };
                // What was kept in free blocks, their links, goes with the pages.
                pool.make_idle();
                // The pages that the next live block leaves free, joined into runs.
                let start = arena.unit_address(unit);
                let mut from = 0;
                for block in 0..class.blocks_per_pool() {
                    if !pool.is_idle(block) {
                        bytes += self.purge_between(start, from, block * class.size());
                        from = (block + 1) * class.size();
                    }
                }
                bytes += self.purge_between(start, from, class.pool_bytes());
            }
        }
        bytes
    }

    /// Purges the whole pages from `from` to `to`, offsets into the pool at `start` between which no block lives.
    fn purge_between(&self, start: NonNull<u8>, from: usize, to: usize) -> usize {
        if to - from < PAGE_BYTES {
            return 0;
        }
        // SAFETY: `from` is below the pool's length, which is mapped.
        let first = unsafe { start.add(from) };
        // SAFETY: in an arena that the source made; no live block in the range, and free blocks hold nothing.
        unsafe { self.source.purge(first, to - from) }
    }
}
