//! Owns the two ways to share the allocator: not at all (`LocalPymalloc`), and behind a lock (`LockedPymalloc`).

use core::cell::UnsafeCell;
use core::fmt;
use core::ptr::NonNull;

use malloc_api::{Malloc, ReleaseLevel};
use pymem_sync::Lock;

use crate::pymalloc::Pymalloc;
use crate::source::{ArenaAllocator, ArenaSource};
use crate::stats::{ArenaStats, PoolStats, Stats};

#[cfg(feature = "std")]
use crate::sources::mmap_arenas::MmapArenas;

/// A pool allocator for one thread, or for a place where a lock is already held (as Python's global lock).
///
/// It is `Send` but not `Sync`.
pub struct LocalPymalloc<R: Malloc, S: ArenaSource> {
    core: UnsafeCell<Pymalloc<R, S>>,
}

#[cfg(feature = "std")]
impl<R: Malloc> LocalPymalloc<R, MmapArenas> {
    /// An allocator with arenas from `mmap` that sends what is not for its pools to `raw`.
    #[must_use]
    pub const fn new(raw: R) -> Self {
        Self::with_source(raw, MmapArenas::new())
    }
}

impl<R: Malloc, S: ArenaSource> LocalPymalloc<R, S> {
    /// An allocator with arenas from `source`.
    #[must_use]
    pub const fn with_source(raw: R, source: S) -> Self {
        Self { core: UnsafeCell::new(Pymalloc::new(raw, source)) }
    }

    /// The allocator itself, for a [`Graveyard`](crate::Graveyard).
    #[must_use]
    pub fn into_inner(self) -> Pymalloc<R, S> {
        self.core.into_inner()
    }

    /// Calls `f` with the allocator itself.
    ///
    /// `f` must not allocate or free through `self`; nothing of this crate does.
    #[inline(always)]
    fn with<T>(&self, f: impl FnOnce(&mut Pymalloc<R, S>) -> T) -> T {
        // SAFETY: `self` is not `Sync`, and no method calls back into it while the reference lives: `R` and `S` may not
        // allocate through the allocator that uses them (`Malloc` 4, `ArenaSource` 6).
        f(unsafe { &mut *self.core.get() })
    }
}

/// A pool allocator for all threads, behind one lock.
///
/// A process that forks while other threads allocate must hold the lock over the fork:
/// [`lock_for_fork`](Self::lock_for_fork).
pub struct LockedPymalloc<R: Malloc, S: ArenaSource> {
    core: Lock<Pymalloc<R, S>>,
}

#[cfg(feature = "std")]
impl<R: Malloc> LockedPymalloc<R, MmapArenas> {
    /// An allocator with arenas from `mmap` that sends what is not for its pools to `raw`.
    #[must_use]
    pub const fn new(raw: R) -> Self {
        Self::with_source(raw, MmapArenas::new())
    }
}

impl<R: Malloc, S: ArenaSource> LockedPymalloc<R, S> {
    /// An allocator with arenas from `source`.
    #[must_use]
    pub const fn with_source(raw: R, source: S) -> Self {
        Self { core: Lock::new(Pymalloc::new(raw, source)) }
    }

    #[inline]
    fn with<T>(&self, f: impl FnOnce(&mut Pymalloc<R, S>) -> T) -> T {
        f(&mut self.core.lock())
    }

    /// Takes the lock, for the prepare handler of a fork.
    pub fn lock_for_fork(&self) {
        self.core.raw().lock();
    }

    /// Gives the lock back, for the handlers after a fork, in the parent and in the child.
    ///
    /// # Safety
    ///
    /// 1. This thread, or in the child the thread that forked, called [`lock_for_fork`](Self::lock_for_fork) before.
    pub unsafe fn unlock_after_fork(&self) {
        // SAFETY: 1.
        unsafe { self.core.raw().unlock() };
    }
}

/// The face that both have, over `with`.
macro_rules! face {
    ($name:ident) => {
        impl<R: Malloc, S: ArenaSource> $name<R, S> {
            /// Number of live blocks, those of the fallback included.
            #[must_use]
            pub fn allocated_blocks(&self) -> usize {
                self.with(|core| core.allocated_blocks())
            }

            /// Is `ptr` in one of the pools? Any pointer value may be asked; null is not.
            #[must_use]
            pub fn owns(&self, ptr: *const u8) -> bool {
                self.with(|core| core.owns(ptr))
            }

            /// Usable bytes of a block of the pools; `None` for any other pointer.
            #[must_use]
            pub fn block_size(&self, ptr: *const u8) -> Option<usize> {
                self.with(|core| core.block_size(ptr))
            }

            /// Counts as of now, taken without allocating.
            #[must_use]
            pub fn stats(&self) -> Stats {
                self.with(|core| core.stats())
            }

            /// Calls `f` with the occupancy of each arena.
            ///
            /// `f` must not use this allocator.
            pub fn for_each_arena(&self, f: impl FnMut(ArenaStats)) {
                self.with(|core| core.for_each_arena(f));
            }

            /// Calls `f` with each pool, free ones too; see [`Pymalloc::for_each_pool`].
            ///
            /// `f` must not use this allocator.
            pub fn for_each_pool(&self, f: impl FnMut(PoolStats)) {
                self.with(|core| core.for_each_pool(f));
            }

            /// Gives memory back to the system; returns the bytes given back.
            pub fn release(&self, level: ReleaseLevel) -> usize {
                self.with(|core| core.release(level))
            }

            /// Walks every structure and compares it with every other.
            ///
            /// # Panics
            ///
            /// If an invariant does not hold; the message names it.
            pub fn check_invariants(&self) {
                self.with(|core| core.check_invariants());
            }

            /// Bytes of arenas beyond which requests go to the fallback; `usize::MAX` is no limit.
            pub fn set_memory_limit(&self, bytes: usize) {
                self.with(|core| core.set_memory_limit(bytes));
            }

            /// The record through which arenas come and go; see [`Pymalloc::arena_allocator`].
            #[must_use]
            pub fn arena_allocator(&self) -> ArenaAllocator {
                self.with(|core| core.arena_allocator())
            }

            /// Replaces that record; see [`Pymalloc::set_arena_allocator`].
            ///
            /// # Safety
            ///
            /// Those of [`Pymalloc::set_arena_allocator`].
            pub unsafe fn set_arena_allocator(&self, record: ArenaAllocator) {
                // SAFETY: the caller's duties.
                self.with(|core| unsafe { core.set_arena_allocator(record) });
            }

            /// Calls `f` before each new arena, with the counts as of then; `None` stops that.
            ///
            /// `f` must not use this allocator.
            pub fn set_new_arena_hook(&self, hook: Option<fn(&Stats)>) {
                self.with(|core| core.set_new_arena_hook(hook));
            }
        }

        // SAFETY: 1: a block is in one place only: handed out, or free in its pool (`Pymalloc`'s
        // invariants), and arenas are exclusive (`ArenaSource` 1); 2: `calloc` clears, `realloc` copies; 3: `realloc`
        // frees after the copy alone; 4: no path unwinds, and `R` and `S` do not call back.
        unsafe impl<R: Malloc, S: ArenaSource> Malloc for $name<R, S> {
            #[inline]
            fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
                self.with(|core| core.malloc(size))
            }

            #[inline]
            fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
                self.with(|core| core.calloc(nelem, elsize))
            }

            #[inline]
            unsafe fn realloc(
                &self,
                ptr: Option<NonNull<u8>>,
                new_size: usize,
            ) -> Option<NonNull<u8>> {
                // SAFETY: the caller's duties 1 and 2 are the same.
                self.with(|core| unsafe { core.realloc(ptr, new_size) })
            }

            #[inline]
            unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
                // SAFETY: the caller's duties 1 and 2 are the same.
                self.with(|core| unsafe { core.free(ptr) });
            }
        }

        impl<R: Malloc, S: ArenaSource> fmt::Debug for $name<R, S> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.with(|core| {
                    f.debug_struct(stringify!($name))
                        .field("allocated_blocks", &core.allocated_blocks())
                        .finish_non_exhaustive()
                })
            }
        }
    };
}

face!(LocalPymalloc);
face!(LockedPymalloc);
