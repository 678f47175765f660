//! Owns the memory that pools are made of: the arenas, where they lie, and how much of them stays resident while it is free. Leaves to
//! `pymalloc.rs` which pools there are, to `supply.rs` and `release.rs` how memory comes behind a pool, and goes.

use core::ptr::NonNull;

use malloc_api::{MIN_ALIGN, Malloc, ReleaseLevel};

use crate::address_map::AddressMap;
use crate::arena::{ArenaPtr, Kind};
use crate::arenas::Arenas;
use crate::checks::annotate;
use crate::checks::hardened::{self, Misuse};
use crate::config::{ARENA_BYTES, POOL_BYTES};
use crate::lane::Lane;
use crate::policy::Kept;
use crate::pool::PoolPtr;
use crate::release::{purge_free_pages, purge_free_pools};
use crate::size_class::SizeClass;
use crate::source::{ArenaAllocator, ArenaSource, Supply};
use crate::supply::{regrow, supply};

/// Arenas from `S`, the pools that are open in them, and the map that finds both.
#[repr(C)]
pub(crate) struct Stock<S: ArenaSource> {
    pub(crate) arenas: Arenas,
    /// Bytes of open pools.
    pub(crate) open_bytes: usize,
    pub(crate) kept: Kept,
    /// How often free memory went back.
    pub(crate) trims: usize,
    /// Bytes of arenas beyond which no new one is made.
    pub(crate) memory_limit: usize,
    /// Set at run time, the functions through which arenas come and go instead of `source`.
    record: Option<ArenaAllocator>,
    pub(crate) source: S,
    /// The last, so that it is beside what else a free reads.
    pub(crate) map: AddressMap,
}

impl<S: ArenaSource> Stock<S> {
    /// No arena yet.
    pub(crate) const fn new(source: S) -> Self {
        Self {
            arenas: Arenas::new(),
            open_bytes: 0,
            kept: Kept::new(),
            trims: 0,
            memory_limit: usize::MAX,
            record: None,
            source,
            map: AddressMap::new(),
        }
    }

    /// Does the source let a pool of `class` open?
    pub(crate) fn admits(&self, class: SizeClass) -> bool {
        self.source.open_pool(class.pool_bytes())
    }

    /// A fresh pool for `class`, which was [admitted](Self::admits); `None` if there is no memory. Where it takes a new arena,
    /// `fallback` has room for its place in the map, and `hook` is called before.
    pub(crate) fn open_pool(
        &mut self,
        class: SizeClass,
        lane: Lane,
        fallback: &impl Malloc,
        hook: impl FnOnce(&Self),
    ) -> Option<PoolPtr> {
        let kind = Kind::of(class);
        let Some((arena, unit, resident)) = self.take_place(kind, lane, fallback, hook) else {
            self.source.close_pools(class.pool_bytes());
            return None;
        };
        let resident = match arena.is_from_source() {
            true => self.source.take_back(arena.address(), resident),
            false => resident,
        };
        let missing = class.pool_bytes() - resident.count_ones() as usize * POOL_BYTES;
        if missing > 0 {
            let (arenas, kept, source) = (&mut self.arenas, &mut self.kept, &self.source);
            let neighbour = self.map.neighbour(arena);
            if !regrow(arenas, kept, source, arena, neighbour, missing) {
                supply(arenas, kept, source, arena, unit..unit + kind.units(), missing);
            }
        }
        let pool = arena.pool(unit);
        pool.open(class, lane);
        self.map.set_class(pool.base(), kind.units(), class.byte());
        self.open_bytes += class.pool_bytes();
        pool.annotate_opened(class);
        Some(pool)
    }

    /// Units for a pool of `kind`, as [`Arenas::take_pool`] gives them; makes an arena if there is none with room.
    fn take_place(
        &mut self,
        kind: Kind,
        lane: Lane,
        fallback: &impl Malloc,
        hook: impl FnOnce(&Self),
    ) -> Option<(ArenaPtr, usize, u64)> {
        if let Some(place) = self.arenas.take_pool(kind, lane) {
            return Some(place);
        }
        self.new_arena(fallback, hook)?;
        self.arenas.take_pool(kind, lane)
    }

    /// Gives a pool without live blocks, which is in no list any more, back to its arena.
    pub(crate) fn close_pool(&mut self, class: SizeClass, pool: PoolPtr) {
        let start = pool.base();
        // SAFETY: 1: the pool is open.
        let arena = unsafe { self.map.arena_of_block(start.addr().get()) };
        let kind = Kind::of(class);
        pool.close();
        self.open_bytes -= class.pool_bytes();
        self.source.close_pools(class.pool_bytes());
        self.map.set_class(start, kind.units(), 0);
        let unit = pool.unit();
        self.arenas.give_pool(arena, unit, kind);
        if arena.is_from_source() {
            let spare = self.arenas.resident_free_bytes();
            // SAFETY: 1: free units.
            unsafe { self.source.offer(arena.address(), kind.mask(unit), spare) };
        }
    }

    /// Gets an arena and enters it as an empty one; `None` if there is no memory or the limit is reached.
    #[cold]
    #[inline(never)]
    fn new_arena(&mut self, fallback: &impl Malloc, hook: impl FnOnce(&Self)) -> Option<()> {
        let held = self.arenas.count() * ARENA_BYTES;
        if held.saturating_add(ARENA_BYTES) > self.memory_limit {
            return None;
        }
        hook(self);
        let (address, supply) = match self.record {
            Some(record) => {
                // SAFETY: `set_arena_allocator` 1 and 3.
                let arena = unsafe { (record.alloc)(record.ctx, ARENA_BYTES) };
                (NonNull::new(arena.cast::<u8>())?, Supply::Sparse)
            }
            None => self.source.alloc_for(ARENA_BYTES, held, self.kept.missing())?,
        };
        let from_source = self.record.is_none();
        // SAFETY: 1, 2: the source or the record gave these bytes to us alone (`ArenaSource` 1, 2).
        let arena = unsafe { ArenaPtr::init(address, from_source && S::IS_ZEROED, from_source) };
        if !self.map.insert(arena, fallback, &self.source) {
            self.return_arena(arena, 0);
            return None;
        }
        let is_hasty = supply != Supply::Sparse;
        arena.set_hasty(is_hasty);
        self.kept.note_haste(is_hasty);
        let resident = supply == Supply::Resident;
        if resident {
            self.kept.needed(ARENA_BYTES);
        }
        self.arenas.add(arena, resident);
        if resident {
            // SAFETY: 1: free units of an arena of the source.
            unsafe { self.source.offer(address, arena.free_mask(), 0) };
        }
        Some(())
    }

    /// Gives empty arenas back, the one that was used last first, while `go_on` says so; returns how many.
    fn release_arenas(&mut self, mut go_on: impl FnMut(&Arenas) -> bool) -> usize {
        let mut count = 0;
        while go_on(&self.arenas) {
            let Some(arena) = self.arenas.remove_empty() else { break };
            self.map.remove(arena);
            self.return_arena(arena, 0);
            count += 1;
        }
        if count > 0 {
            self.map.recede(self.arenas.iter());
        }
        count
    }

    /// Gives an arena that is in no list and in no map back to where it came from, with `spare_bytes` of them in all if they may
    /// go later.
    fn return_arena(&self, arena: ArenaPtr, spare_bytes: usize) {
        let address = arena.address();
        annotate::arena_closed(address);
        let units = match arena.is_from_source() {
            // The first unit has the header.
            true => 1 | !arena.free_mask() | self.source.take_back(address, arena.resident_mask()),
            false => u64::MAX,
        };
        match self.record {
            // SAFETY: `set_arena_allocator` 2 and 3.
            Some(record) => unsafe {
                (record.free)(record.ctx, address.as_ptr().cast(), ARENA_BYTES);
            },
            // SAFETY: 1: without a record all arenas are the source's, of this size, and nothing leads to this one any more;
            // 2: units that are free and not resident were never written to, or have gone.
            None => unsafe { self.source.free_later(address, units, spare_bytes) },
        }
    }

    /// Tells a memory checker, if the build has one, that a block was handed out.
    #[inline(always)]
    pub(crate) fn annotate_allocated(&self, block: NonNull<u8>, size: usize) {
        if annotate::IS_ON {
            let class = self.map.class_of(block.addr().get());
            class.into_iter().for_each(|class| annotate::block_allocated(block, class, size));
        }
    }

    /// Tells a memory checker, if the build has one, that a block of the pools came back.
    #[inline(always)]
    pub(crate) fn annotate_freed(&self, block: NonNull<u8>) {
        if annotate::IS_ON {
            let class = self.map.class_of(block.addr().get());
            class.into_iter().for_each(|class| annotate::block_freed(block, class));
        }
    }

    /// With feature `hardened`, aborts with a message unless `block` may be a live block.
    ///
    /// For addresses outside the pools only the alignment is checked; the rest is up to the fallback.
    #[inline(always)]
    pub(crate) fn check_live(&self, block: NonNull<u8>) {
        if !hardened::IS_ON {
            return;
        }
        let address = block.addr().get();
        match self.map.class_of(address) {
            Some(class) => {
                // SAFETY: 1: the address has a class.
                unsafe { self.map.pool_of_block(address) }.check_live(class, block);
            }
            None if address % MIN_ALIGN != 0 => hardened::fatal(Misuse::NotABlock, block),
            None => {}
        }
    }

    /// Notes which free units the source has taken the memory of.
    pub(crate) fn note_purged(&mut self) {
        let mut next = self.arenas.first();
        while let Some(arena) = next {
            next = Arenas::after(arena);
            if arena.is_from_source() {
                let mask = arena.resident_mask();
                let gone = mask & !self.source.waiting(arena.address(), mask);
                self.arenas.set_purged(arena, gone);
            }
        }
    }

    /// Whether a large block of `bytes`, which is asked for, may lift the process's peak by what is free here.
    #[inline]
    pub(crate) fn may_lift(&mut self, bytes: usize) -> bool {
        self.kept.is_large_enough(bytes, self.arenas.resident_free_bytes())
    }

    /// The bytes of free memory that may stay beside a large block of `bytes`: `None` where as much as there is may.
    pub(crate) fn target_beside(&mut self, bytes: usize) -> Option<usize> {
        let spare = self.arenas.resident_free_bytes();
        self.kept.target_beside(bytes, spare, self.source.peak_bytes())
    }

    /// The bytes of free memory that may stay after pools were closed: `None` where as much as there is may.
    pub(crate) fn target(&self) -> Option<usize> {
        let is_over = self.arenas.resident_free_bytes() > self.kept.bytes(self.open_bytes);
        is_over.then(|| self.kept.trim_target(self.open_bytes))
    }

    /// Will the free memory soon be more than may stay?
    pub(crate) fn is_near(&self) -> bool {
        self.kept.is_near(self.open_bytes, self.arenas.resident_free_bytes())
    }

    /// Gives free memory back, whole arenas first, then pools of the emptiest ones, until at most `target` bytes of it are resident;
    /// returns the bytes given back.
    pub(crate) fn trim(&mut self, target: usize) -> usize {
        self.trims = self.trims.wrapping_add(1);
        self.note_purged();
        let before = self.arenas.resident_free_bytes();
        self.release_arenas(|arenas| arenas.resident_free_bytes() > target);
        purge_free_pools(&mut self.arenas, &self.source, target);
        before - self.arenas.resident_free_bytes()
    }

    /// Gives memory back to the system; returns the bytes given back.
    pub(crate) fn release(&mut self, level: ReleaseLevel) -> usize {
        self.note_purged();
        self.kept.begin_anew();
        let mut bytes = self.release_arenas(|_| true) * ARENA_BYTES;
        if level >= ReleaseLevel::Pools {
            bytes += purge_free_pools(&mut self.arenas, &self.source, 0);
        }
        if level >= ReleaseLevel::Pages {
            bytes += purge_free_pages(&self.arenas, &self.source);
        }
        bytes
    }

    /// Gives every arena back, whatever lives in it, and later where the source likes; and the map, whose table may be the fallback's.
    ///
    /// # Safety
    ///
    /// 1. No pool is used afterwards.
    pub(crate) unsafe fn tear_down(&mut self, fallback: &impl Malloc) {
        let bytes = self.arenas.count() * ARENA_BYTES;
        for arena in self.arenas.take_all() {
            self.return_arena(arena, bytes);
        }
        self.source.close_pools(core::mem::take(&mut self.open_bytes));
        self.map.clear(fallback, &self.source);
    }

    /// Gives every arena back if no pool is open; else they stay, so that no block dangles.
    pub(crate) fn give_up(&mut self, fallback: &impl Malloc) {
        if self.open_bytes > 0 {
            return;
        }
        self.release_arenas(|_| true);
        self.map.clear(fallback, &self.source);
    }

    /// The record through which arenas come and go: the one that was set, else one that stands for the source.
    pub(crate) fn arena_allocator(&self) -> ArenaAllocator {
        self.record.unwrap_or_else(|| ArenaAllocator::of(&self.source))
    }

    /// Replaces the functions through which arenas come and go.
    ///
    /// # Safety
    ///
    /// 1. `record.alloc(ctx, size)` returns null or `size` bytes of any alignment that nobody else uses.
    /// 2. `record.free(ctx, ptr, size)` takes back those, and the arenas that exist now.
    /// 3. Both may be called from where this value is used, as long as it is.
    pub(crate) unsafe fn set_arena_allocator(&mut self, record: ArenaAllocator) {
        self.record = (record != ArenaAllocator::of(&self.source)).then_some(record);
    }
}
