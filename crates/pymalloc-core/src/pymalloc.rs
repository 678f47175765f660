//! Owns the allocator itself: the hot paths, and the cold ones that move blocks and pools between their lists.
//!
//! It has no lock and no interior mutability: `access.rs` gives it both.

use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};

use malloc_api::Malloc;

use crate::address_map::AddressMap;
use crate::arena::{ArenaPtr, Kind};
use crate::arenas::Arenas;
use crate::checks::annotate;
use crate::config::{ARENA_BYTES, GRAIN_BYTES, POOL_BYTES, POOLED_MAX};
use crate::policy::Kept;
use crate::pool::PoolPtr;
use crate::size_class::{CLASS_OF_GRAINS, SizeClass};
use crate::source::{ArenaAllocator, ArenaSource};
use crate::stats::Stats;
use crate::used_pools::UsedPools;

/// Bytes of fresh memory that are populated together: a page costs a third less that way than by a fault.
const COMMIT_BYTES: usize = 128 << 10;

/// The key of the next allocator. Keys come round after 2^32 allocators; two of one key would have to be alive, and a
/// block of the one freed through the other, which is forbidden anyway, to be confused.
static NEXT_KEY: AtomicU32 = AtomicU32::new(1);

/// The pool allocator: blocks up to [`POOLED_MAX`](crate::POOLED_MAX) bytes from pools, everything else from `R`; arenas from `S`.
///
/// Methods take `&mut self`; [`LocalPymalloc`](crate::LocalPymalloc) and
/// [`LockedPymalloc`](crate::LockedPymalloc) make it a [`Malloc`].
#[repr(C)]
pub struct Pymalloc<R: Malloc, S: ArenaSource> {
    pub(crate) map: AddressMap,
    /// What the records of used pools bear; 0 before the first call.
    pub(crate) key: u32,
    pub(crate) used: UsedPools,
    pub(crate) arenas: Arenas,
    /// Open pools of each class.
    pub(crate) pools: [u32; SizeClass::COUNT],
    /// Bytes of open pools.
    pub(crate) open_bytes: usize,
    pub(crate) raw_blocks: usize,
    pub(crate) kept: Kept,
    pub(crate) arenas_ever: usize,
    pub(crate) arenas_peak: usize,
    pub(crate) memory_limit: usize,
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
            key: 0,
            used: UsedPools::new(),
            arenas: Arenas::new(),
            pools: [0; SizeClass::COUNT],
            open_bytes: 0,
            raw_blocks: 0,
            kept: Kept::new(),
            arenas_ever: 0,
            arenas_peak: 0,
            memory_limit: usize::MAX,
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

    /// The block of the size's class that was freed last; `None` if the class's first pool has none.
    #[inline(always)]
    pub(crate) fn malloc_cached(&mut self, size: usize) -> Option<NonNull<u8>> {
        let bytes = annotate::padded(size);
        if bytes > POOLED_MAX {
            return None;
        }
        // SAFETY: `bytes` is at most `POOLED_MAX`, so the index is in the table.
        let row = unsafe { *CLASS_OF_GRAINS.get_unchecked(bytes.div_ceil(GRAIN_BYTES)) };
        // SAFETY: 1: the table holds class bytes, and 0 for no bytes.
        let block = unsafe { self.used.head(row) }.pop()?;
        self.block_allocated(block, size);
        Some(block)
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
        let Some(block) = ptr else { return };
        self.check_live(block.as_ptr());
        self.block_freed(block);
        // SAFETY: 1: a live block, so its arena is mapped.
        match unsafe { self.map.record_in_span(block.addr().get()) } {
            Some(pool) if pool.has_key(self.key) => {
                // SAFETY: 1, 2: only a used pool of this allocator has its key, and the block lies in that pool.
                if unsafe { pool.push(block) } {
                    self.pool_became_empty(pool);
                }
            }
            // SAFETY: the caller's duties 1 and 2.
            _ => unsafe { self.free_cold(block) },
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
        let (size, bytes) = (class.size(), annotate::padded(new_size));
        if bytes <= size && (4 * bytes > 3 * size || SizeClass::of(bytes) == Some(class)) {
            annotate::block_resized(old, class, new_size);
            return ptr;
        }
        let size = annotate::live_size(old, class);
        let new = self.malloc(new_size)?;
        // SAFETY: both blocks are live and distinct, and each has at least this many bytes.
        unsafe { new.copy_from_nonoverlapping(old, size.min(new_size)) };
        // SAFETY: 1 and 2: the old block has been copied and is dead to the caller.
        unsafe { self.free(ptr) };
        Some(new)
    }

    /// Every case of `malloc` but a pop: zero bytes, a large request, a first pool without a freed block.
    #[cold]
    #[inline(never)]
    fn malloc_cold(&mut self, size: usize) -> Option<NonNull<u8>> {
        let class = SizeClass::of(annotate::padded(size));
        match class.and_then(|class| self.refill(class)) {
            Some(block) => {
                self.block_allocated(block, size);
                Some(block)
            }
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

    /// Every case of `free` but a push on a used pool: a full pool, the second unit of a pair, an arena outside
    /// of the span, a block of `R`.
    ///
    /// # Safety
    ///
    /// 1. `block` is a live block of this allocator.
    /// 2. It is not used afterwards.
    #[cold]
    #[inline(never)]
    unsafe fn free_cold(&mut self, block: NonNull<u8>) {
        let address = block.addr().get();
        let Some(class) = self.map.class_of(address) else {
            self.raw_blocks = self.raw_blocks.wrapping_sub(1);
            // SAFETY: 1 and 2: it is not in a pool, so `R` made it.
            unsafe { self.raw.free(Some(block)) };
            return;
        };
        // SAFETY: it has a class.
        let pool = unsafe { self.map.pool_of_block(address) };
        // SAFETY: 1, 2.
        let empty = unsafe { pool.push(block) };
        if !pool.has_key(self.key) {
            // It was full. It cannot be empty at the same time: a pool has several blocks.
            self.used.insert(class, pool, self.key);
        } else if empty {
            self.pool_became_empty(pool);
        }
    }

    /// Finds a pool of `class` with a freed or an idle block, and takes that.
    fn refill(&mut self, class: SizeClass) -> Option<NonNull<u8>> {
        if self.key == 0 {
            self.begin();
        }
        loop {
            let Some(pool) = self.used.first(class) else {
                let pool = self.new_pool(class)?;
                self.used.insert(class, pool, self.key);
                continue;
            };
            if let Some(block) = pool.pop() {
                return Some(block);
            }
            if !pool.extend(class) {
                self.used.unlink(class, pool);
            }
        }
    }

    /// Closes a pool without a live block. It is not the first of its class: that one is kept, so that a class whose
    /// last block comes and goes does not open and close a pool each time.
    #[cold]
    #[inline(never)]
    fn pool_became_empty(&mut self, pool: PoolPtr) {
        let Some(class) = pool.class() else { return };
        self.close_pool(class, pool);
        let kept = self.kept.bytes(self.open_bytes);
        if self.arenas.resident_free_bytes() > kept {
            self.trim(kept - kept / 4);
        }
    }

    /// Gives a used pool without live blocks back to its arena.
    pub(crate) fn close_pool(&mut self, class: SizeClass, pool: PoolPtr) {
        let start = pool.base();
        // SAFETY: 1: the pool is open.
        let arena = unsafe { self.map.arena_of_block(start.addr().get()) };
        let kind = Kind::of(class);
        self.used.unlink(class, pool);
        pool.close();
        self.pools[class.index()] -= 1;
        self.open_bytes -= class.pool_bytes();
        self.map.set_class(start, kind.units(), 0);
        self.arenas.give_pool(arena, pool.unit(), kind);
    }

    /// A fresh pool for `class`, in no list yet; `None` if there is no memory.
    #[cold]
    #[inline(never)]
    fn new_pool(&mut self, class: SizeClass) -> Option<PoolPtr> {
        let kind = Kind::of(class);
        let (arena, unit, resident) = match self.arenas.take_pool(kind) {
            Some(place) => place,
            None => {
                self.new_arena()?;
                self.arenas.take_pool(kind)?
            }
        };
        let start = arena.unit_address(unit);
        let missing = class.pool_bytes() - resident.count_ones() as usize * POOL_BYTES;
        self.kept.missed(missing, self.arenas_peak * ARENA_BYTES);
        if missing > 0 && arena.is_from_source() {
            let end = unit + kind.units();
            let more = arena.virgin_run(end, COMMIT_BYTES / POOL_BYTES - kind.units());
            // SAFETY: free units of this arena, which the source made.
            unsafe { self.source.populate(start, class.pool_bytes() + more * POOL_BYTES) };
            self.arenas.set_resident(arena, end, more);
        }
        let pool = arena.pool(unit);
        pool.open(class);
        self.map.set_class(start, kind.units(), class.byte());
        self.pools[class.index()] += 1;
        self.open_bytes += class.pool_bytes();
        annotate::pool_opened(start, class.pool_bytes());
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
        let held = self.arenas.count() * ARENA_BYTES;
        let (address, resident) = match self.record {
            Some(record) => {
                // SAFETY: whoever set the record promised that it may be called.
                let arena = unsafe { (record.alloc)(record.ctx, ARENA_BYTES) };
                (NonNull::new(arena.cast::<u8>())?, false)
            }
            None => self.source.alloc_for(ARENA_BYTES, held)?,
        };
        let from_source = self.record.is_none();
        if from_source && !resident {
            // SAFETY: the start of an arena that the source made.
            unsafe { self.source.populate(address, POOL_BYTES) };
        }
        // SAFETY: the source or the record gave these bytes to us alone (`ArenaSource` 1, 2).
        let arena = unsafe { ArenaPtr::init(address, from_source && S::IS_ZEROED, from_source) };
        if !self.map.insert(arena, &self.raw) {
            self.return_arena(arena);
            return None;
        }
        if resident {
            self.kept.needed(ARENA_BYTES);
        }
        self.arenas.add(arena, resident);
        self.arenas_ever += 1;
        self.arenas_peak = self.arenas_peak.max(self.arenas.count());
        Some(())
    }

    /// The first call: takes a key, and covers the source's span with a map.
    #[cold]
    #[inline(never)]
    fn begin(&mut self) {
        while self.key == 0 {
            // Relaxed: the keys' order does not matter, only that they differ.
            self.key = NEXT_KEY.fetch_add(1, Ordering::Relaxed);
        }
        let Some(span) = self.source.span() else { return };
        if let Some(table) = self.source.alloc_table(AddressMap::table_bytes(span)) {
            // SAFETY: `ArenaSource` 4.
            unsafe { self.map.cover(span, table) };
        }
    }

    /// Number of live blocks, those of `R` included.
    #[must_use]
    pub fn allocated_blocks(&self) -> usize {
        let live = |arena: ArenaPtr| {
            arena.open_units().map(|unit| arena.pool(unit).live_blocks()).sum::<usize>()
        };
        self.raw_blocks + self.arenas.iter().map(live).sum::<usize>()
    }

    /// Has this allocator no live block, in its pools or in `R`?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let is_empty =
            |arena: ArenaPtr| arena.open_units().all(|unit| arena.pool(unit).live_blocks() == 0);
        self.raw_blocks == 0 && self.arenas.iter().all(is_empty)
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
        let class = self.map.class_of(ptr.addr())?;
        NonNull::new(ptr.cast_mut()).map(|block| annotate::live_size(block, class))
    }
}

impl<R: Malloc, S: ArenaSource> Drop for Pymalloc<R, S> {
    /// Gives every arena back if no block is live; else they stay, so that no block dangles.
    fn drop(&mut self) {
        self.close_empty_pools();
        if self.open_bytes > 0 {
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
