//! Owns the allocator itself: the four calls, and which pools they take blocks from. Leaves the memory of the pools to `stock.rs`, the
//! lock, or the promise that none is needed, to `access.rs`, to `exchange.rs` what threads keep before it, and to `elsewhere.rs` what the
//! fallback serves.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};

use malloc_api::{Malloc, Pools, ReleaseLevel, Usage};
use pymem_sync::Filling;

use crate::arena::ArenaPtr;
use crate::checks::hardened;
use crate::checks::{annotate, invariants};
use crate::config::{GRAIN_BYTES, POOLED_MAX};
use crate::depot::Depot;
use crate::lane::Lane;
use crate::pool::PoolPtr;
use crate::size_class::{CLASS_OF_GRAINS, SizeClass};
use crate::source::ArenaSource;
use crate::stats::{PoolWalk, Stats};
use crate::stock::Stock;
use crate::used_pools::UsedPools;

/// The key of the next allocator. Keys repeat after 2^32 allocators. Two allocators of one key would be confused only by a
/// program that frees a block of one through the other, which is forbidden anyway.
static NEXT_KEY: AtomicU32 = AtomicU32::new(1);

/// No pool has this key.
pub(crate) const NO_KEY: u32 = u32::MAX;

/// What came of a free without a slow way.
pub(crate) enum Pushed {
    /// The block was its pool's last one.
    Last(PoolPtr),
    OneOfMany,
    /// It takes a slow way.
    No,
}

/// The pool allocator: blocks up to [`POOLED_MAX`] bytes from pools, everything else from the fallback `R`; arenas from
/// `S`.
#[repr(C)]
pub(crate) struct Pymalloc<R: Malloc, S: ArenaSource> {
    pub(crate) stock: Stock<S>,
    /// The key in the records of used pools; 0 before the first call.
    pub(crate) key: u32,
    pub(crate) used: UsedPools,
    pub(crate) fallback_blocks: usize,
    /// What threads keep before these pools: free blocks that are live ones here.
    pub(crate) depot: Depot,
    /// Called before each new arena, with the counts as of then.
    pub(crate) new_arena_hook: Option<fn(&Stats)>,
    pub(crate) fallback: R,
}

// SAFETY: the raw pointers lead to arenas and tables that belong to this value alone; `R` and `S` may move by bound.
unsafe impl<R: Malloc + Send, S: ArenaSource + Send> Send for Pymalloc<R, S> {}

impl<R: Malloc, S: ArenaSource> Pymalloc<R, S> {
    /// An allocator without arenas yet.
    pub(crate) const fn new(fallback: R, source: S) -> Self {
        Self {
            stock: Stock::new(source),
            key: 0,
            used: UsedPools::new(),
            fallback_blocks: 0,
            depot: Depot::new(),
            new_arena_hook: None,
            fallback,
        }
    }

    /// Allocates `size` bytes; see [`Malloc::malloc`].
    #[inline(always)]
    pub(crate) fn malloc(&mut self, size: usize) -> Option<NonNull<u8>> {
        match self.malloc_cached(size) {
            None => self.malloc_cold(size, Lane::FIRST),
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
        self.stock.annotate_allocated(block, size);
        Some(block)
    }

    /// The first pool of the row of a class byte, or one that never has a block; where others use the allocator, the latter for row 0.
    ///
    /// # Safety
    ///
    /// 1. `this` is an allocator that nobody else uses, or `row` is 0.
    /// 2. `row` is a class byte, or 0.
    #[inline(always)]
    pub(crate) unsafe fn hot_head(this: *const Self, row: u32) -> PoolPtr {
        // SAFETY: 1: a field of an allocator.
        let used = unsafe { &raw const (*this).used };
        // SAFETY: 1: by 1, and nobody ever writes row 0; 2: by 2.
        unsafe { UsedPools::head_at(used, row) }
    }

    /// The key of used pools, and the span as far as it has arenas.
    #[inline]
    pub(crate) fn hot_span(&self) -> (u32, usize, usize) {
        let (base, bytes) = self.stock.map.used_span();
        (self.key, base, bytes)
    }

    /// Every case of `malloc` but a pop: zero bytes, a large request, a first pool of `lane` without a freed block.
    #[cold]
    #[inline(never)]
    pub(crate) fn malloc_cold(&mut self, size: usize, lane: Lane) -> Option<NonNull<u8>> {
        self.malloc_refilled(size, lane)
    }

    /// As [`malloc_cold`](Self::malloc_cold), for who is called seldom enough to have it in place.
    #[inline(always)]
    pub(crate) fn malloc_refilled(&mut self, size: usize, lane: Lane) -> Option<NonNull<u8>> {
        let class = SizeClass::of(annotate::padded(size));
        let Some(block) = class.and_then(|class| self.refill_any(class, lane)) else {
            return self.malloc_elsewhere(size);
        };
        self.stock.annotate_allocated(block, size);
        Some(block)
    }

    /// Frees `ptr`; see [`Malloc::free`].
    ///
    /// # Safety
    ///
    /// 1. `ptr` is `None` or a live block of this allocator.
    /// 2. The block is not used afterwards.
    #[inline(always)]
    pub(crate) unsafe fn free(&mut self, ptr: Option<NonNull<u8>>) {
        let Some(block) = ptr else { return };
        self.stock.check_live(block);
        self.stock.annotate_freed(block);
        // SAFETY: 1, 2: the caller's.
        match unsafe { self.push(block) } {
            Pushed::Last(pool) => self.pool_became_empty(pool),
            Pushed::OneOfMany => {}
            // SAFETY: 1, 2: the caller's.
            Pushed::No => unsafe { self.free_cold(block) },
        }
    }

    /// As [`free`](Self::free), for a block of which it is known that it was not pushed.
    ///
    /// # Safety
    ///
    /// 1. `block` is a live block of this allocator.
    /// 2. It is not used afterwards.
    #[inline(always)]
    pub(crate) unsafe fn free_seldom(&mut self, block: NonNull<u8>) {
        self.stock.check_live(block);
        self.stock.annotate_freed(block);
        // SAFETY: 1, 2: the caller's.
        unsafe { self.free_cold(block) };
    }

    /// Puts `block` on the list of its pool, if that is a used one of this allocator; what a pool's last block asks for is left to the
    /// caller.
    ///
    /// # Safety
    ///
    /// 1. `block` is a live block of this allocator.
    /// 2. It is not used afterwards, unless it was not pushed.
    #[inline(always)]
    pub(crate) unsafe fn push(&mut self, block: NonNull<u8>) -> Pushed {
        // SAFETY: 1: a live block, so its arena is mapped.
        match unsafe { self.stock.map.record_in_span(block.addr().get()) } {
            Some(pool) if pool.has_key(self.key) => {
                // SAFETY: 1: only a used pool of this allocator has its key, and the block lies in that pool.
                if unsafe { pool.push(block) } { Pushed::Last(pool) } else { Pushed::OneOfMany }
            }
            _ => Pushed::No,
        }
    }

    /// Every case of `free` but a push on a used pool: a full pool, the second unit of a pair, an arena outside
    /// of the span, a block of the fallback.
    ///
    /// # Safety
    ///
    /// 1. `block` is a live block of this allocator.
    /// 2. It is not used afterwards.
    #[cold]
    #[inline(never)]
    unsafe fn free_cold(&mut self, block: NonNull<u8>) {
        let address = block.addr().get();
        let Some(class) = self.stock.map.class_of(address) else {
            self.fallback_blocks = self.fallback_blocks.wrapping_sub(1);
            // SAFETY: 1, 2: no pool holds the block, so the fallback made it.
            unsafe { self.fallback.free(Some(block)) };
            return;
        };
        // SAFETY: 1: the block has a class.
        let pool = unsafe { self.stock.map.pool_of_block(address) };
        // SAFETY: 1: the caller's 1 and 2.
        let empty = unsafe { pool.push(block) };
        if !pool.has_key(self.key) {
            // The pool was full. It cannot be empty at the same time: a pool has several blocks.
            self.used.insert(class, pool, self.key);
        } else if empty {
            self.pool_became_empty(pool);
        }
    }

    /// Whether `block` is one of the span's that becomes one of `new_size` bytes where it is, without a word to anybody.
    #[inline(always)]
    pub(crate) fn keeps(&self, block: NonNull<u8>, new_size: usize) -> bool {
        if annotate::IS_ON || hardened::IS_ON {
            return false;
        }
        let byte = self.stock.map.class_byte_in_span(block.addr().get());
        SizeClass::from_byte(byte).is_some_and(|class| class.keeps(new_size))
    }

    /// Resizes `ptr` to `new_size` bytes; see [`Malloc::realloc`].
    ///
    /// A block of the pools stays where it is if the request still fits and is more than three quarters of its size
    /// (or has the same class); else it moves. A block of the fallback stays with the fallback, however small it becomes.
    ///
    /// # Safety
    ///
    /// 1. `ptr` is `None` or a live block of this allocator.
    /// 2. After a successful call the old pointer is dead, even where it equals the new one.
    #[inline]
    pub(crate) unsafe fn realloc(
        &mut self,
        ptr: Option<NonNull<u8>>,
        new_size: usize,
    ) -> Option<NonNull<u8>> {
        let Some(old) = ptr else {
            return self.malloc(new_size);
        };
        self.stock.check_live(old);
        let Some(class) = self.stock.map.class_of(old.addr().get()) else {
            // SAFETY: 1, 2: no pool holds the block.
            return unsafe { self.realloc_elsewhere(ptr, new_size) };
        };
        if class.keeps(annotate::padded(new_size)) {
            annotate::block_resized(old, class, new_size);
            return ptr;
        }
        let size = annotate::live_size(old, class);
        let new = self.malloc(new_size)?;
        // SAFETY: both blocks are live and distinct, and each has at least this many bytes.
        unsafe { new.copy_from_nonoverlapping(old, size.min(new_size)) };
        // SAFETY: 1, 2: the old block has been copied and is dead to the caller.
        unsafe { self.free(ptr) };
        Some(new)
    }

    /// Moves free blocks of `class` into `filling`, as far as `lane` has pools with some; they are live here then.
    pub(crate) fn take_many(&mut self, class: SizeClass, lane: Lane, filling: &mut Filling<'_>) {
        while let Some(pool) = self.used.first(class, lane).filter(|_| filling.left() > 0) {
            pool.pop_many(class, filling);
            if filling.left() > 0 {
                self.used.unlink(class, pool);
            }
        }
    }

    /// Frees `first`, and those that `blocks` has of the same unit next; returns the first block that is elsewhere.
    ///
    /// # Safety
    ///
    /// 1. All are live blocks of the pools.
    /// 2. They are not used afterwards.
    #[inline]
    pub(crate) unsafe fn free_run(
        &mut self,
        first: NonNull<u8>,
        blocks: &mut impl Iterator<Item = NonNull<u8>>,
    ) -> Option<NonNull<u8>> {
        // SAFETY: 1: a live block, so its arena is mapped.
        match unsafe { self.stock.map.record_in_span(first.addr().get()) } {
            Some(pool) if pool.has_key(self.key) => {
                // SAFETY: 1: only a used pool of this allocator has its key, and the blocks of the unit lie in that pool; the caller's 2.
                let (is_empty, next) = unsafe { pool.push_run(first, blocks) };
                if is_empty {
                    self.pool_became_empty(pool);
                }
                next
            }
            _ => {
                // SAFETY: 1, 2: the caller's.
                unsafe { self.free_cold(first) };
                blocks.next()
            }
        }
    }

    /// As [`refill`](Self::refill); where `lane` can have no more memory, what the first lane has at hand.
    #[inline]
    fn refill_any(&mut self, class: SizeClass, lane: Lane) -> Option<NonNull<u8>> {
        match self.refill(class, lane) {
            None if lane != Lane::FIRST => self.refill(class, Lane::FIRST),
            block => block,
        }
    }

    /// Finds a pool of `class` with a freed or an idle block for `lane`, and takes that block.
    fn refill(&mut self, class: SizeClass, lane: Lane) -> Option<NonNull<u8>> {
        if self.key == 0 {
            self.begin();
        }
        loop {
            let Some(pool) = self.used.first(class, lane) else {
                let pool = self.new_pool(class, lane)?;
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

    /// A fresh pool for `class`, in no list yet; `None` if there is no memory.
    #[cold]
    #[inline(never)]
    fn new_pool(&mut self, class: SizeClass, lane: Lane) -> Option<PoolPtr> {
        if !self.stock.admits(class) {
            self.close_empty_pools();
            if !self.stock.admits(class) {
                return None;
            }
        }
        let (depot, blocks, hook) = (&self.depot, self.fallback_blocks, self.new_arena_hook);
        self.stock.open_pool(class, lane, &self.fallback, |stock| {
            if let Some(hook) = hook {
                hook(&Stats::count(&stock.arenas, &stock.map, depot, blocks));
            }
        })
    }

    /// Closes a pool without a live block. The pool is not the first of its class: that one is kept, so that a class whose
    /// last block comes and goes does not open and close a pool each time.
    #[cold]
    #[inline(never)]
    pub(crate) fn pool_became_empty(&mut self, pool: PoolPtr) {
        let Some(class) = pool.class() else { return };
        self.close_pool(class, pool);
        if let Some(target) = self.stock.target() {
            let bytes = self.trim(target);
            self.stock.kept.gave_back(bytes);
        }
    }

    /// Closes a used pool without live blocks.
    pub(crate) fn close_pool(&mut self, class: SizeClass, pool: PoolPtr) {
        self.used.unlink(class, pool);
        self.stock.close_pool(class, pool);
    }

    /// Closes the pools that are kept although they have no live block.
    fn close_empty_pools(&mut self) {
        for lane in self.used.lanes() {
            for class in SizeClass::all() {
                let first = self.used.first(class, lane);
                if let Some(pool) = first.filter(|pool| pool.live_blocks() == 0) {
                    self.close_pool(class, pool);
                }
            }
        }
    }

    /// The first call: takes a key, and covers the source's span with a map.
    #[cold]
    #[inline(never)]
    pub(crate) fn begin(&mut self) {
        while matches!(self.key, 0 | NO_KEY) {
            // Relaxed: the keys' order does not matter, only that they differ.
            self.key = NEXT_KEY.fetch_add(1, Ordering::Relaxed);
        }
        self.stock.map.cover(&self.stock.source);
    }

    /// Gives free memory back, whole arenas first, then pools of the emptiest ones, until at most `target` bytes of it are resident;
    /// returns the bytes given back.
    #[cold]
    pub(crate) fn trim(&mut self, target: usize) -> usize {
        self.close_empty_pools();
        self.stock.trim(target)
    }

    /// Gives memory back to the system; returns the bytes given back.
    pub(crate) fn release(&mut self, level: ReleaseLevel) -> usize {
        self.close_empty_pools();
        self.stock.release(level)
    }

    /// Number of live blocks, those of the fallback included.
    pub(crate) fn allocated_blocks(&self) -> usize {
        self.fallback_blocks + self.pooled_blocks()
    }

    /// Number of live blocks in pools.
    pub(crate) fn pooled_blocks(&self) -> usize {
        let live = |arena: ArenaPtr| {
            arena.open_units().map(|unit| arena.pool(unit).live_blocks()).sum::<usize>()
        };
        let live: usize = self.stock.arenas.iter().map(live).sum();
        // A block that changes threads meanwhile may be counted twice.
        live.saturating_sub(SizeClass::all().map(|class| self.depot.blocks_of(class)).sum())
    }

    /// Usable bytes of a block of the pools; `None` for any other pointer.
    pub(crate) fn block_size(&self, ptr: *const u8) -> Option<usize> {
        let class = self.stock.map.class_of(ptr.addr())?;
        NonNull::new(ptr.cast_mut()).map(|block| annotate::live_size(block, class))
    }

    /// Is `ptr` in an open pool of this allocator?
    pub(crate) fn owns(&self, ptr: *const u8) -> bool {
        self.stock.map.class_of(ptr.addr()).is_some()
    }

    pub(crate) fn stats(&self) -> Stats {
        let Stock { arenas, map, .. } = &self.stock;
        Stats::count(arenas, map, &self.depot, self.fallback_blocks)
    }

    pub(crate) fn pools(&mut self) -> PoolWalk {
        self.stock.note_purged();
        PoolWalk::new(&self.stock.arenas, self.depot.clone())
    }

    pub(crate) fn check_invariants(&self) {
        invariants::check(&self.stock, &self.used, &self.depot, self.key);
    }
}

impl<R: Pools, S: ArenaSource> Pymalloc<R, S> {
    /// The live blocks, and their bytes: of the pools by class, of the fallback as it counts them, but for the map's table.
    pub(crate) fn usage(&self) -> Usage {
        let [_, (_, table_bytes)] = self.stock.map.footprint();
        let stats = self.stats();
        let bytes = stats.bytes_in_use() + self.fallback.usage().bytes - table_bytes;
        Usage { blocks: stats.allocated_blocks(), bytes }
    }

    /// Gives every arena back, whatever lives in it and later where the source likes, and frees every block of the fallback.
    ///
    /// # Safety
    ///
    /// 1. No block is used afterwards.
    /// 2. The allocator is only dropped afterwards.
    pub(crate) unsafe fn tear_down(&mut self) {
        self.used = UsedPools::new();
        // SAFETY: 1: the caller's 1 and 2.
        unsafe { self.stock.tear_down(&self.fallback) };
        // SAFETY: 1, 2: the caller's.
        unsafe { self.fallback.tear_down() };
    }
}

impl<R: Malloc, S: ArenaSource> Drop for Pymalloc<R, S> {
    /// Gives every arena back if no block is live; else they stay, so that no block dangles.
    fn drop(&mut self) {
        self.close_empty_pools();
        self.stock.give_up(&self.fallback);
    }
}

/// `calloc` by the `malloc` of `pools`; zero bytes and a large request are `slow`.
#[inline(always)]
pub(crate) fn calloc_by(
    pools: &impl Malloc,
    nelem: usize,
    elsize: usize,
    slow: impl FnOnce() -> Option<NonNull<u8>>,
) -> Option<NonNull<u8>> {
    let size = nelem.checked_mul(elsize)?;
    if size == 0 || size > POOLED_MAX {
        return slow();
    }
    let block = pools.malloc(size)?;
    // SAFETY: `malloc` gave `size` bytes.
    unsafe { block.write_bytes(0, size) };
    Some(block)
}
