//! Owns the allocator itself: the hot paths, and the cold ones that move blocks between magazines, pools and arenas.
//!
//! It has no lock and no interior mutability: `access.rs` gives it both.

use core::fmt;
use core::ptr::NonNull;

use malloc_api::Malloc;

use crate::address_map::AddressMap;
use crate::arena::{ArenaPtr, Kind};
use crate::arenas::Arenas;
use crate::config::{ARENA_BYTES, GRAIN_BYTES, POOL_BYTES, POOLED_MAX};
use crate::fatal::{Misuse, fatal};
use crate::magazine::Magazines;
use crate::pool::PoolPtr;
use crate::size_class::{CLASS_OF_GRAINS, SizeClass};
use crate::source::{ArenaAllocator, ArenaSource};
use crate::stats::Stats;
use crate::used_pools::UsedPools;

/// Bytes of free pools that stay resident for the next need, however little is in use.
pub(crate) const KEPT_BYTES_MIN: usize = 6 << 20;

/// Open pools after which a class has shown that it grows: its next pools are populated at one stroke. Pools of the
/// many classes that never get there are touched page by page.
const POPULATE_AFTER_POOLS: u32 = 4;

/// Bytes of fresh memory that are committed together once a class has shown that it grows.
const COMMIT_BYTES: usize = 64 << 10;

/// The pool allocator: small and medium blocks from pools, everything else from `R`; arenas from `S`.
///
/// Methods take `&mut self`; [`LocalPymalloc`](crate::LocalPymalloc) and
/// [`LockedPymalloc`](crate::LockedPymalloc) make it a [`Malloc`].
#[repr(C)]
pub struct Pymalloc<R: Malloc, S: ArenaSource> {
    pub(crate) map: AddressMap,
    pub(crate) magazines: Magazines,
    pub(crate) used: UsedPools,
    pub(crate) arenas: Arenas,
    /// Open pools of each class.
    pub(crate) pools: [u32; SizeClass::COUNT],
    /// Blocks out of their pools: handed out or in a magazine.
    pub(crate) blocks_out: usize,
    /// Bytes of those blocks.
    pub(crate) bytes_out: usize,
    pub(crate) raw_blocks: usize,
    /// Bytes of free pools that stay resident at least: `KEPT_BYTES_MIN`, and what was given back and missed.
    pub(crate) kept_floor: usize,
    /// Bytes given back that have not been needed again since.
    pub(crate) bytes_given_back: usize,
    pub(crate) arenas_ever: usize,
    pub(crate) arenas_peak: usize,
    pub(crate) memory_limit: usize,
    pub(crate) opened: bool,
    pub(crate) record: Option<ArenaAllocator>,
    pub(crate) new_arena_hook: Option<fn(&Stats)>,
    pub(crate) raw: R,
    pub(crate) source: S,
}

// SAFETY: the raw pointers lead to arenas and tables that belong to this value alone; `R` and `S` may move by bound.
unsafe impl<R: Malloc + Send, S: ArenaSource + Send> Send for Pymalloc<R, S> {}

impl<R: Malloc, S: ArenaSource> Pymalloc<R, S> {
    /// An allocator without arenas yet. `raw` serves 0 bytes and what is larger than
    /// [`POOLED_MAX`](crate::POOLED_MAX), `source` gives arenas.
    #[must_use]
    pub const fn new(raw: R, source: S) -> Self {
        Self {
            map: AddressMap::new(),
            magazines: Magazines::new(),
            used: UsedPools::new(),
            arenas: Arenas::new(),
            pools: [0; SizeClass::COUNT],
            blocks_out: 0,
            bytes_out: 0,
            raw_blocks: 0,
            kept_floor: KEPT_BYTES_MIN,
            bytes_given_back: 0,
            arenas_ever: 0,
            arenas_peak: 0,
            memory_limit: usize::MAX,
            opened: false,
            record: None,
            new_arena_hook: None,
            raw,
            source,
        }
    }

    /// Allocates `size` bytes; see [`Malloc::malloc`].
    #[inline(always)]
    pub fn malloc(&mut self, size: usize) -> Option<NonNull<u8>> {
        match self.malloc_cached(size) {
            None => self.malloc_cold(size),
            block => block,
        }
    }

    /// The block on top of the magazine for `size`; `None` if that is empty, or there is none for this size.
    #[inline(always)]
    pub(crate) fn malloc_cached(&mut self, size: usize) -> Option<NonNull<u8>> {
        if size <= POOLED_MAX {
            // SAFETY: `size` is at most `POOLED_MAX`, so the index is in the table.
            let class = unsafe { *CLASS_OF_GRAINS.get_unchecked(size.div_ceil(GRAIN_BYTES)) };
            if let Some(block) = self.magazines.pop(class) {
                return NonNull::new(block);
            }
        }
        None
    }

    /// Allocates `nelem * elsize` zero bytes; see [`Malloc::calloc`].
    #[inline]
    pub fn calloc(&mut self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        let size = nelem.checked_mul(elsize)?;
        if size == 0 || size > POOLED_MAX {
            return self.raw_calloc(nelem, elsize);
        }
        let block = self.malloc(size)?;
        // SAFETY: `malloc` gave `size` bytes.
        unsafe { block.write_bytes(0, size) };
        Some(block)
    }

    /// Frees `ptr`; see [`Malloc::free`].
    ///
    /// # Safety
    ///
    /// 1. `ptr` is `None` or a live block of this allocator.
    /// 2. The block is not used afterwards.
    #[inline(always)]
    pub unsafe fn free(&mut self, ptr: Option<NonNull<u8>>) {
        let ptr = ptr.map_or(core::ptr::null_mut(), NonNull::as_ptr);
        self.check_live(ptr);
        let class = self.map.class_byte_in_span(ptr.addr());
        if !self.magazines.push(class, ptr) {
            // SAFETY: the caller's duties 1 and 2.
            unsafe { self.free_cold(ptr) };
        }
    }

    /// Resizes `ptr` to `new_size` bytes; see [`Malloc::realloc`].
    ///
    /// A block of the pools stays where it is if the request still fits and is more than three quarters of its size
    /// (or has the same class); else it moves. A block of `R` stays with `R`, however small it becomes.
    ///
    /// # Safety
    ///
    /// 1. `ptr` is `None` or a live block of this allocator.
    /// 2. After a successful call the old pointer is dead, even where it equals the new one.
    #[inline]
    pub unsafe fn realloc(
        &mut self,
        ptr: Option<NonNull<u8>>,
        new_size: usize,
    ) -> Option<NonNull<u8>> {
        let Some(old) = ptr else {
            return self.malloc(new_size);
        };
        self.check_live(old.as_ptr());
        let Some(class) = self.map.class_of(old.addr().get()) else {
            // SAFETY: 1 and 2: the block is not in a pool, so `R` made it.
            return unsafe { self.raw.realloc(ptr, new_size) };
        };
        let size = class.size();
        if new_size <= size && (4 * new_size > 3 * size || SizeClass::of(new_size) == Some(class)) {
            return ptr;
        }
        let new = self.malloc(new_size)?;
        // SAFETY: both blocks are live and distinct, and each has at least this many bytes.
        unsafe { new.copy_from_nonoverlapping(old, size.min(new_size)) };
        // SAFETY: 1 and 2: the old block has been copied and is dead to the caller.
        unsafe { self.free(ptr) };
        Some(new)
    }

    /// Every case of `malloc` but an empty hand: zero bytes, a large request, an empty magazine.
    #[cold]
    #[inline(never)]
    fn malloc_cold(&mut self, size: usize) -> Option<NonNull<u8>> {
        match SizeClass::of(size) {
            Some(class) => self.refill(class).or_else(|| self.raw_malloc(size)),
            None => self.raw_malloc(size),
        }
    }

    fn raw_malloc(&mut self, size: usize) -> Option<NonNull<u8>> {
        let block = self.raw.malloc(size)?;
        self.raw_blocks += 1;
        Some(block)
    }

    #[cold]
    #[inline(never)]
    fn raw_calloc(&mut self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        let block = self.raw.calloc(nelem, elsize)?;
        self.raw_blocks += 1;
        Some(block)
    }

    /// Every case of `free` but a push: null, an arena outside of the span, a full magazine, a block of `R`.
    ///
    /// # Safety
    ///
    /// 1. `ptr` is null or a live block of this allocator.
    /// 2. The block is not used afterwards.
    #[cold]
    #[inline(never)]
    unsafe fn free_cold(&mut self, ptr: *mut u8) {
        let Some(block) = NonNull::new(ptr) else { return };
        match self.map.class_of(ptr.addr()) {
            Some(class) => {
                if !self.magazines.push(class.byte(), ptr) {
                    self.spill(class);
                    self.magazines.push(class.byte(), ptr);
                }
            }
            None => {
                self.raw_blocks = self.raw_blocks.wrapping_sub(1);
                // SAFETY: 1 and 2: it is not in a pool, so `R` made it.
                unsafe { self.raw.free(Some(block)) };
            }
        }
    }

    /// Fills the empty magazine of `class` to a half and takes one block of it.
    fn refill(&mut self, class: SizeClass) -> Option<NonNull<u8>> {
        if !self.opened {
            self.open();
        }
        let want = self.magazines.limit(class).div_ceil(2);
        let mut filled = 0;
        while filled < want {
            let Some(pool) = self.used.first(class) else {
                // What the used pools gave is enough; a fresh pool is for an empty hand.
                if filled > 0 {
                    break;
                }
                let pool = self.new_pool(class)?;
                self.used.push_front(class, pool);
                continue;
            };
            let out = &mut self.magazines.slots(class)[filled..want];
            filled += pool.take(out, class.size());
            if pool.free_blocks() == 0 {
                self.used.unlink(class, pool);
            }
        }
        self.blocks_out += filled;
        self.bytes_out += filled * class.size();
        // Lowest address on top: fresh memory is first touched in the order that the hardware prefetches.
        self.magazines.slots(class)[..filled].reverse();
        self.magazines.set_len(class, filled - 1);
        NonNull::new(self.magazines.slots(class)[filled - 1])
    }

    /// Gives the older half of a full magazine back to the pools.
    fn spill(&mut self, class: SizeClass) {
        let len = self.magazines.len(class);
        let gone = len.div_ceil(2);
        self.drain(class, gone);
    }

    /// Gives the `count` oldest blocks of a magazine back to the pools.
    pub(crate) fn drain(&mut self, class: SizeClass, count: usize) {
        let len = self.magazines.len(class);
        for index in 0..count {
            let block = self.magazines.slots(class)[index];
            self.give_back(class, block);
        }
        self.magazines.slots(class).copy_within(count..len, 0);
        self.magazines.set_len(class, len - count);
        self.blocks_out -= count;
        self.bytes_out -= count * class.size();
    }

    /// Gives one block of a magazine back to its pool.
    #[inline]
    fn give_back(&mut self, class: SizeClass, block: *mut u8) {
        // SAFETY: a magazine's blocks have a class.
        let arena = unsafe { self.map.arena_of_block(block.addr()) };
        let Some(unit) = arena.unit_of(block.addr()) else {
            fatal(Misuse::NotABlock, block);
        };
        let unit = arena.pool_unit(unit);
        let pool = arena.pool(unit);
        let offset = block.addr() - pool.base().addr();
        let Some(before) = pool.give(class.geometry().block_at(offset)) else {
            fatal(Misuse::DoubleFree, block);
        };
        if before == 0 {
            self.used.push_front(class, pool);
        } else if before + 1 == class.blocks_per_pool() {
            self.used.unlink(class, pool);
            self.pool_became_empty(class, arena, unit, pool);
        }
    }

    /// Gives a pool without live blocks back to its arena, and the arena to the source if it is one too many.
    #[cold]
    #[inline(never)]
    fn pool_became_empty(&mut self, class: SizeClass, arena: ArenaPtr, unit: usize, pool: PoolPtr) {
        pool.close();
        self.pools[class.index()] -= 1;
        self.map.set_class(arena.unit_address(unit), arena.kind().units(), 0);
        let before = arena.free_pools();
        self.arenas.give_pool(arena, unit);
        self.arenas.moved(arena, before);
        let kept = self.kept_bytes();
        if self.arenas.resident_free_bytes() > kept {
            self.trim(kept - kept / 4);
        }
    }

    /// Bytes of free pools that may stay resident: as much as is in use, and a floor.
    ///
    /// A program that frees half of its memory and allocates it anew meets no page fault; one that ends its life
    /// holds little.
    fn kept_bytes(&self) -> usize {
        self.bytes_out.max(self.kept_floor)
    }

    /// Gives free memory back, whole arenas first, then pools of the emptiest ones, until at most `target` bytes of
    /// free pools are resident.
    #[cold]
    fn trim(&mut self, target: usize) {
        // What was kept for a need that no longer comes wears off.
        self.kept_floor -= (self.kept_floor - KEPT_BYTES_MIN) / 64;
        let before = self.arenas.resident_free_bytes();
        while self.arenas.resident_free_bytes() > target {
            if !self.release_arena() {
                break;
            }
        }
        self.purge_free_pools(target);
        self.bytes_given_back += before - self.arenas.resident_free_bytes();
    }

    /// Notes that `bytes` of fresh memory are needed: as far as they were given back before, that was in vain, and the
    /// floor of what is kept rises.
    fn missed(&mut self, bytes: usize) {
        let missed = bytes.min(self.bytes_given_back);
        self.bytes_given_back -= missed;
        let peak = self.arenas_peak * ARENA_BYTES;
        self.kept_floor = (self.kept_floor + 2 * missed).min(peak.max(KEPT_BYTES_MIN));
    }

    /// Gives the emptiest arena back to its source; returns whether there was one.
    pub(crate) fn release_arena(&mut self) -> bool {
        let Some(arena) = self.arenas.remove_empty() else {
            return false;
        };
        self.map.remove(arena);
        let (address, from_source) = (arena.address(), arena.is_from_source());
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
        true
    }

    /// A fresh pool for `class`, in no list yet; `None` if there is no memory.
    #[cold]
    #[inline(never)]
    fn new_pool(&mut self, class: SizeClass) -> Option<PoolPtr> {
        let kind = Kind::of(class);
        let arena = match self.arenas.fullest(kind) {
            Some(arena) => arena,
            None => {
                self.new_arena()?;
                self.arenas.fullest(kind)?
            }
        };
        let before = arena.free_pools();
        let (unit, resident) = self.arenas.take_pool(arena);
        let start = arena.unit_address(unit);
        if !resident {
            self.missed(kind.units() * POOL_BYTES);
        }
        let grows = kind == Kind::Small && self.pools[class.index()] >= POPULATE_AFTER_POOLS;
        if !resident && grows && arena.is_from_source() {
            let pool_bytes = kind.units() * POOL_BYTES;
            let more = arena.virgin_run(unit, COMMIT_BYTES / pool_bytes - 1);
            // SAFETY: the run is of pools of this arena, which the source made.
            unsafe { self.source.populate(start, (1 + more) * pool_bytes) };
            self.arenas.set_resident_after(arena, unit, more);
        }
        self.arenas.moved(arena, before);
        let pool = arena.pool(unit);
        pool.open(start.as_ptr(), class);
        self.map.set_class(start, kind.units(), class.byte());
        self.pools[class.index()] += 1;
        Some(pool)
    }

    /// Gets an arena and enters it as an empty one; `None` if there is no memory or the limit is reached.
    #[cold]
    #[inline(never)]
    fn new_arena(&mut self) -> Option<()> {
        if (self.arenas.count() + 1).saturating_mul(ARENA_BYTES) > self.memory_limit {
            return None;
        }
        if let Some(hook) = self.new_arena_hook {
            hook(&self.stats());
        }
        let address = match self.record {
            Some(record) => {
                // SAFETY: whoever set the record promised that it may be called.
                let arena = unsafe { (record.alloc)(record.ctx, ARENA_BYTES) };
                NonNull::new(arena.cast::<u8>())?
            }
            None => self.source.alloc(ARENA_BYTES)?,
        };
        let from_source = self.record.is_none();
        // SAFETY: the source or the record gave these bytes to us alone (`ArenaSource` 1, 2).
        let arena = unsafe { ArenaPtr::init(address, from_source && S::IS_ZEROED, from_source) };
        self.arenas.add(arena);
        if !self.map.insert(arena, &self.raw) {
            self.release_arena();
            return None;
        }
        self.arenas_ever += 1;
        self.arenas_peak = self.arenas_peak.max(self.arenas.count());
        Some(())
    }

    /// The first call: lets the magazines fill, and covers the source's span with a map.
    #[cold]
    #[inline(never)]
    fn open(&mut self) {
        self.opened = true;
        self.magazines.open();
        let Some(span) = self.source.span() else { return };
        if let Some(table) = self.source.alloc_table(AddressMap::table_bytes(span)) {
            // SAFETY: `ArenaSource` 4.
            unsafe { self.map.cover(span, table) };
        }
    }

    /// Number of live blocks, those of `R` included.
    #[must_use]
    pub fn allocated_blocks(&self) -> usize {
        let cached: usize = SizeClass::all().map(|class| self.magazines.len(class)).sum();
        self.raw_blocks + self.blocks_out - cached
    }

    /// Is `ptr` in an open pool of this allocator? Any pointer value may be asked; null is not.
    #[must_use]
    pub fn owns(&self, ptr: *const u8) -> bool {
        self.map.class_of(ptr.addr()).is_some()
    }

    /// The allocator of zero-size and large requests.
    pub const fn raw(&self) -> &R {
        &self.raw
    }

    /// The source of arenas.
    pub const fn source(&self) -> &S {
        &self.source
    }

    /// Bytes of arenas beyond which no new one is made, so that requests go to `R`; `usize::MAX` is no limit.
    pub const fn set_memory_limit(&mut self, bytes: usize) {
        self.memory_limit = bytes;
    }

    /// The record through which arenas come and go: the one that was set, else one that stands for the source.
    ///
    /// The latter is usable as long as this allocator stays where it is.
    #[must_use]
    pub fn arena_allocator(&self) -> ArenaAllocator {
        self.record.unwrap_or_else(|| ArenaAllocator::of(&self.source))
    }

    /// Replaces the functions through which arenas come and go, from now on.
    ///
    /// Arenas that exist are later given to the new `free`, as in CPython.
    ///
    /// # Safety
    ///
    /// 1. `record.alloc(ctx, size)` returns null or `size` bytes of any alignment that nobody else uses.
    /// 2. `record.free(ctx, ptr, size)` takes back those, and the arenas that exist now.
    /// 3. Both may be called from where this allocator is used, as long as it is.
    pub unsafe fn set_arena_allocator(&mut self, record: ArenaAllocator) {
        self.record = (record != ArenaAllocator::of(&self.source)).then_some(record);
    }

    /// Calls `hook` before each new arena, with the counts as of then; `None` stops that.
    ///
    /// The hook must not use this allocator.
    pub const fn set_new_arena_hook(&mut self, hook: Option<fn(&Stats)>) {
        self.new_arena_hook = hook;
    }

    /// Usable bytes of a block of the pools; `None` for any other pointer.
    #[must_use]
    pub fn block_size(&self, ptr: *const u8) -> Option<usize> {
        self.map.class_of(ptr.addr()).map(SizeClass::size)
    }
}

impl<R: Malloc, S: ArenaSource> Drop for Pymalloc<R, S> {
    /// Gives every arena back if no block is live; else they stay, so that no block dangles.
    fn drop(&mut self) {
        for class in SizeClass::all() {
            self.drain(class, self.magazines.len(class));
        }
        if self.blocks_out > 0 {
            return;
        }
        while self.release_arena() {}
        self.map.clear(&self.raw);
        if let Some((table, bytes)) = self.map.table() {
            // SAFETY: `open` got it from this source with this size, and the map ends here.
            unsafe { self.source.free_table(table, bytes) };
        }
    }
}

impl<R: Malloc, S: ArenaSource> fmt::Debug for Pymalloc<R, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pymalloc")
            .field("allocated_blocks", &self.allocated_blocks())
            .field("arenas", &self.arenas.count())
            .finish_non_exhaustive()
    }
}
