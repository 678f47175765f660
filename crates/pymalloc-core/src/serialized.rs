//! Owns [`SerializedPymalloc`]: pools for threads that hold a lock of their own, as Python's GIL, until they are shared; from then on
//! those of a `LockedPymalloc` with magazines. Leaves to `passage.rs` of `pymem-sync` how that begins.

use core::fmt;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicUsize, Ordering};

use malloc_api::{Malloc, ReleaseLevel};
use pymem_sync::Passage;

use crate::access::{LockedPymalloc, debug, questions};
use crate::cached::CachedPymalloc;
use crate::checks::{annotate, hardened};
use crate::config::{GRAIN_BYTES, POOLED_MAX};
use crate::lane::Lane;
use crate::pool::PoolPtr;
use crate::pymalloc::{NO_KEY, Pushed, Pymalloc, calloc_by};
use crate::size_class::CLASS_OF_GRAINS;
use crate::slots;
use crate::source::{ArenaAllocator, ArenaSource};
#[cfg(feature = "std")]
use crate::sources::region::MmapArenas;
use crate::stats::{PoolStats, Stats};
use crate::walk::walk_pinned;

/// A pool allocator for all threads whose callers hold one lock of their own over every call, such as Python's global lock, for as long
/// as there is only one.
///
/// [`share`](Self::share) makes it one for any thread: a [`LockedPymalloc`] with magazines. Before, a call takes no lock: it marks its
/// beginning and its end by a plain store each, and all else that it needs to know is in what it reads anyway.
#[repr(C, align(64))]
pub struct SerializedPymalloc<R: Malloc, S: ArenaSource> {
    quick: Quick,
    /// Whether the thread that holds the lock over a fork found the pools shared.
    is_fork_of_shared: AtomicBool,
    /// The process that was about to fork.
    process: AtomicI32,
    pools: LockedPymalloc<R, S>,
}

/// What the hot paths ask before they go into the pools, and once more when they have said so: that must go together with what the pools
/// say of themselves, and says no to everything where the pools are shared.
///
/// All is read and written Relaxed: before the pools are shared by one caller after the other, afterwards it stays as it is.
#[repr(C)]
struct Quick {
    /// The most bytes of a request that is taken.
    largest: AtomicUsize,
    /// Minus the start of the pools' span, and the span's bytes as far as it has arenas.
    minus_base: AtomicUsize,
    bytes: AtomicUsize,
    /// The key of the pools.
    key: AtomicU32,
    /// Invariant 2: closed in values that live for ever alone.
    passage: Passage,
    /// `CLASS_OF_GRAINS`, or zeros. Invariant 1: each is a class byte, or 0. Of a size that needs no extension to be an index.
    classes: [AtomicU32; CLASS_OF_GRAINS.len()],
}

impl Quick {
    /// That of pools without arenas, and of those that are shared.
    const fn new() -> Self {
        Self {
            largest: AtomicUsize::new(0),
            minus_base: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            key: AtomicU32::new(NO_KEY),
            passage: Passage::new(),
            classes: [const { AtomicU32::new(0) }; CLASS_OF_GRAINS.len()],
        }
    }

    /// Says what `core` says now.
    #[inline]
    fn follow<R: Malloc, S: ArenaSource>(&self, core: &Pymalloc<R, S>) {
        let (key, base, bytes) = core.hot_span();
        if annotate::IS_ON || hardened::IS_ON {
            return;
        }
        self.bytes.store(bytes, Ordering::Relaxed);
        if self.key.load(Ordering::Relaxed) != key && key != 0 {
            self.minus_base.store(base.wrapping_neg(), Ordering::Relaxed);
            self.key.store(key, Ordering::Relaxed);
            self.set_classes(&CLASS_OF_GRAINS);
            self.largest.store(POOLED_MAX, Ordering::Relaxed);
        }
    }

    /// Says no to everything.
    fn close(&self) {
        self.largest.store(0, Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
        self.key.store(NO_KEY, Ordering::Relaxed);
        self.set_classes(&[0; CLASS_OF_GRAINS.len()]);
    }

    fn set_classes(&self, bytes: &[u8; CLASS_OF_GRAINS.len()]) {
        for (class, byte) in self.classes.iter().zip(bytes) {
            class.store(u32::from(*byte), Ordering::Relaxed);
        }
    }
}

/// Says that the calling thread is out when it is dropped.
struct Inside<'a>(&'a Passage);

impl Drop for Inside<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl<R: Malloc, S: ArenaSource> SerializedPymalloc<R, S> {
    /// An allocator with arenas from `source`.
    ///
    /// # Safety
    ///
    /// 1. Until [`share`](Self::share) has returned, all calls of the value's methods but that one and those for forks, from
    ///    whatever threads, are made under one lock. Where it is called, [`can_be_shared`] has said yes before the first call.
    #[must_use]
    pub const unsafe fn with_source(fallback: R, source: S) -> Self {
        Self {
            quick: Quick::new(),
            is_fork_of_shared: AtomicBool::new(false),
            process: AtomicI32::new(0),
            pools: LockedPymalloc::with_source(fallback, source),
        }
    }

    /// Whether any thread may call.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.quick.passage.is_closed()
    }

    #[inline]
    fn with<T>(&self, f: impl FnOnce(&mut Pymalloc<R, S>) -> T) -> T {
        match self.enter() {
            Some((_inside, core)) => {
                let answer = f(core);
                self.quick.follow(core);
                answer
            }
            None => f(&mut self.pools.core.lock()),
        }
    }

    /// The pools for a call under the callers' lock; `None` if they are shared.
    #[inline]
    #[allow(clippy::mut_from_ref, reason = "as of a lock: one caller at a time")]
    fn enter(&self) -> Option<(Inside<'_>, &mut Pymalloc<R, S>)> {
        self.quick.passage.enter();
        let inside = Inside(&self.quick.passage);
        if !self.quick.passage.is_open() {
            return None;
        }
        // SAFETY: no other thread is in a call (duty 1 of `with_source`; `share` waits for this one), and no method calls back into
        // `self` while the reference lives: `R` and `S` may not allocate through the allocator that uses them (`Malloc` 4,
        // `ArenaSource` 6).
        Some((inside, unsafe { &mut *self.pools.core.as_ptr() }))
    }

    /// Takes what a fork needs, for its prepare handler: any thread may fork, whoever makes calls.
    pub fn lock_for_fork(&self) {
        self.pools.core.raw().lock();
        self.process.store(slots::process(), Ordering::Relaxed);
        let is_shared = self.is_shared();
        self.is_fork_of_shared.store(is_shared, Ordering::Relaxed);
        if is_shared {
            // SAFETY: the lock is held for this thread, and there is no other way in any more.
            unsafe { self.pools.note_fork() };
        }
    }

    /// Gives it back, for the handlers after a fork, in the parent and in the child. A child has lost a thread that was in a call, which
    /// the lock of the callers rules out unless a thread forks without it.
    ///
    /// # Safety
    ///
    /// 1. This thread, or in the child the thread that forked, called [`lock_for_fork`](Self::lock_for_fork) before.
    pub unsafe fn unlock_after_fork(&self) {
        if slots::process() != self.process.load(Ordering::Relaxed) {
            self.quick.passage.leave();
        }
        if self.is_fork_of_shared.load(Ordering::Relaxed) {
            // SAFETY: 1: the lock is held for this thread (1), which has noted the fork.
            unsafe { self.pools.note_after_fork() };
        }
        // SAFETY: 1: by duty 1.
        unsafe { self.pools.core.raw().unlock() };
    }

    /// Calls `f` with each pool as [`LocalPymalloc::for_each_pool`](crate::LocalPymalloc::for_each_pool) does; once shared, as that of
    /// [`LockedPymalloc`], and then `f` must not use this allocator, or it waits for ever.
    pub fn for_each_pool(&self, f: impl FnMut(PoolStats)) {
        if self.is_shared() {
            return self.pools.for_each_pool(f);
        }
        walk_pinned(&|work| self.with(work), f);
    }

    /// Gives memory back to the system, as [`LockedPymalloc::release`] does; returns the bytes given back.
    pub fn release(&self, level: ReleaseLevel) -> usize {
        match self.enter() {
            Some((_inside, core)) => {
                let bytes = core.release(level);
                self.quick.follow(core);
                bytes
            }
            None => self.pools.release(level),
        }
    }
}

/// Whether pools can be shared while a thread is in a call, which takes a service of the system (`membarrier` of Linux).
#[must_use]
pub fn can_be_shared() -> bool {
    Passage::prepare()
}

impl<R, S> SerializedPymalloc<R, S>
where
    R: Malloc + Send + 'static,
    S: ArenaSource + Send + 'static,
{
    /// Lets any thread call from now on, for good; does nothing where that is so.
    ///
    /// Any thread may call this, with the callers' lock or without, but not in the middle of another call: a call of another
    /// thread is waited for.
    #[cold]
    pub fn share(&'static self) {
        self.quick.passage.close(|| self.quick.close());
    }

    /// The pools for any thread, with magazines where there are any, once they are shared.
    fn cached(&self) -> Option<&'static CachedPymalloc<R, S>> {
        let this = ptr::from_ref(&self.pools);
        // SAFETY: the passage is not open, so the value lives for ever (`Quick`'s invariant 2).
        unsafe { &*this }.cached()
    }

    /// Every case of `malloc` but a pop of pools that are not shared.
    #[cold]
    #[inline(never)]
    fn malloc_slow(&self, size: usize) -> Option<NonNull<u8>> {
        if let Some((_inside, core)) = self.enter() {
            let block = core.malloc_refilled(size, Lane::FIRST);
            self.quick.follow(core);
            return block;
        }
        match self.cached() {
            Some(cached) => cached.malloc(size),
            None => self.pools.malloc(size),
        }
    }

    /// Zero bytes, and a large request.
    #[cold]
    #[inline(never)]
    fn calloc_slow(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        self.with(|core| core.calloc_elsewhere(nelem, elsize))
    }

    /// Every case of `realloc` but a block that stays where it is.
    ///
    /// # Safety
    ///
    /// 1. `block` is a live block of this allocator.
    /// 2. After a successful call the old pointer is dead.
    #[cold]
    #[inline(never)]
    unsafe fn realloc_slow(&self, block: NonNull<u8>, new_size: usize) -> Option<NonNull<u8>> {
        if let Some((_inside, core)) = self.enter() {
            // SAFETY: 1, 2: the caller's.
            let new = unsafe { core.realloc(Some(block), new_size) };
            self.quick.follow(core);
            return new;
        }
        match self.cached() {
            // SAFETY: 1, 2: the caller's.
            Some(cached) => unsafe { cached.realloc(Some(block), new_size) },
            // SAFETY: 1, 2: the caller's.
            None => unsafe { self.pools.realloc(Some(block), new_size) },
        }
    }

    /// Every case of `free` but a push onto a used pool that is not shared.
    ///
    /// # Safety
    ///
    /// 1. `block` is a live block of this allocator.
    /// 2. It is not used afterwards.
    #[cold]
    #[inline(never)]
    unsafe fn free_slow(&self, block: NonNull<u8>) {
        if let Some((_inside, core)) = self.enter() {
            // SAFETY: 1, 2: the caller's.
            unsafe { core.free_seldom(block) };
            return self.quick.follow(core);
        }
        match self.cached() {
            // SAFETY: 1, 2: the caller's.
            Some(cached) => unsafe { cached.free(Some(block)) },
            // SAFETY: 1, 2: the caller's.
            None => unsafe { self.pools.free(Some(block)) },
        }
    }

    /// Closes a pool that has lost its last block, in a call that is inside.
    #[cold]
    #[inline(never)]
    fn close_pool(&self, pool: PoolPtr) {
        if let Some((_inside, core)) = self.enter() {
            core.pool_became_empty(pool);
            self.quick.follow(core);
        }
    }
}

// SAFETY: at most one thread at a time is in a call, and each call happens after the one before (duty 1 of `with_source`): the shared
// reference is used as if it moved from thread to thread, which `Send` allows. Once shared, as `LockedPymalloc`.
unsafe impl<R: Malloc + Send, S: ArenaSource + Send> Sync for SerializedPymalloc<R, S> {}

// SAFETY: 1: a block is in one place only: handed out, free in its pool, or in a magazine once the pools are shared; 2: `calloc` clears,
// `realloc` copies; 3: `realloc` frees after the copy alone; 4: no path unwinds, and `R` and `S` do not call back.
unsafe impl<R, S> Malloc for SerializedPymalloc<R, S>
where
    R: Malloc + Send + 'static,
    S: ArenaSource + Send + 'static,
{
    #[inline]
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        // Asked before the mark, so that threads that share the pools write to nothing common here.
        if size > self.quick.largest.load(Ordering::Relaxed) {
            return self.malloc_slow(size);
        }
        self.quick.passage.enter();
        // Not `div_ceil`, which takes the size for one of any number of bytes here.
        let grains = (size + (GRAIN_BYTES - 1)) >> GRAIN_BYTES.trailing_zeros();
        // SAFETY: `size` is at most `POOLED_MAX`, so the index is in the table.
        let row = unsafe { self.quick.classes.get_unchecked(grains) }.load(Ordering::Relaxed);
        // SAFETY: 1: the pools are not shared or the row is 0; 2: `Quick`'s invariant 1.
        match unsafe { Pymalloc::hot_head(self.pools.core.as_ptr(), row) }.pop() {
            None => self.malloc_slow(size),
            block => {
                self.quick.passage.leave();
                block
            }
        }
    }

    #[inline]
    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        calloc_by(self, nelem, elsize, || self.calloc_slow(nelem, elsize))
    }

    #[inline]
    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        let Some(block) = ptr else { return self.malloc(new_size) };
        if self.enter().is_some_and(|(_inside, core)| core.keeps(block, new_size)) {
            return ptr;
        }
        // SAFETY: 1, 2: the caller's.
        unsafe { self.realloc_slow(block, new_size) }
    }

    #[inline]
    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        let Some(block) = ptr else { return };
        let minus_base = self.quick.minus_base.load(Ordering::Relaxed);
        let address = block.addr().get();
        // As in `malloc`.
        if minus_base.wrapping_add(address) >= self.quick.bytes.load(Ordering::Relaxed) {
            // SAFETY: 1, 2: the caller's.
            return unsafe { self.free_slow(block) };
        }
        self.quick.passage.enter();
        // SAFETY: 1: a live block, so its arena is mapped, and in the span.
        let pool = unsafe { PoolPtr::of_block(address) };
        if !pool.has_key(self.quick.key.load(Ordering::Relaxed)) {
            // SAFETY: 1, 2: the caller's.
            return unsafe { self.free_slow(block) };
        }
        // SAFETY: 1: only a used pool of this allocator has its key, and the block lies in that pool. Pools that are shared have
        // another one than is asked for.
        if unsafe { pool.push(block) } {
            return self.close_pool(pool);
        }
        self.quick.passage.leave();
    }
}

/// A [`SerializedPymalloc`] that is never shared: a call that finds what it needs at hand marks neither its beginning nor its end.
#[repr(transparent)]
pub struct UnsharedPymalloc<R: Malloc, S: ArenaSource>(SerializedPymalloc<R, S>);

impl<R: Malloc, S: ArenaSource> SerializedPymalloc<R, S> {
    /// The same allocator for callers that hold one lock for ever.
    ///
    /// # Safety
    ///
    /// 1. [`share`](Self::share) is never called.
    #[must_use]
    pub unsafe fn unshared(&self) -> &UnsharedPymalloc<R, S> {
        // SAFETY: the type is transparent.
        unsafe { &*ptr::from_ref(self).cast() }
    }
}

impl<R: Malloc, S: ArenaSource> fmt::Debug for UnsharedPymalloc<R, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<R: Malloc, S: ArenaSource> UnsharedPymalloc<R, S> {
    #[inline(always)]
    #[allow(clippy::mut_from_ref, reason = "as of a lock: one caller at a time")]
    fn core(&self) -> &mut Pymalloc<R, S> {
        // SAFETY: no other thread is in a call (duty 1 of `with_source`, for ever by that of `unshared`), and no method calls back into
        // `self` while the reference lives, as of `enter`.
        unsafe { &mut *self.0.pools.core.as_ptr() }
    }
}

// SAFETY: 1 to 4: as of `SerializedPymalloc`, whose slow ways these are.
unsafe impl<R, S> Malloc for UnsharedPymalloc<R, S>
where
    R: Malloc + Send + 'static,
    S: ArenaSource + Send + 'static,
{
    #[inline]
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        match self.core().malloc_cached(size) {
            None => self.0.malloc_slow(size),
            block => block,
        }
    }

    #[inline]
    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        calloc_by(self, nelem, elsize, || self.0.calloc_slow(nelem, elsize))
    }

    #[inline]
    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        let Some(block) = ptr else { return self.malloc(new_size) };
        if self.core().keeps(block, new_size) {
            return ptr;
        }
        // SAFETY: 1, 2: the caller's.
        unsafe { self.0.realloc_slow(block, new_size) }
    }

    #[inline]
    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        let Some(block) = ptr else { return };
        if annotate::IS_ON || hardened::IS_ON {
            // SAFETY: 1, 2: the caller's.
            return unsafe { self.0.free_slow(block) };
        }
        // SAFETY: 1, 2: the caller's.
        match unsafe { self.core().push(block) } {
            Pushed::Last(pool) => self.0.close_pool(pool),
            Pushed::OneOfMany => {}
            // SAFETY: 1, 2: the caller's.
            Pushed::No => unsafe { self.0.free_slow(block) },
        }
    }
}

questions!(SerializedPymalloc);
debug!(SerializedPymalloc);

#[cfg(feature = "std")]
impl<R: Malloc> SerializedPymalloc<R, MmapArenas> {
    /// An allocator with arenas from `mmap` that sends zero-size and large requests to `fallback`.
    ///
    /// # Safety
    ///
    /// 1. That of [`with_source`](Self::with_source).
    #[must_use]
    pub const unsafe fn new(fallback: R) -> Self {
        // SAFETY: 1: by duty 1.
        unsafe { Self::with_source(fallback, MmapArenas::new()) }
    }
}
