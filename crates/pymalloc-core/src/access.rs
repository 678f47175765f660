//! Owns the public allocators that share one `Pymalloc` in three ways: not at all (`LocalPymalloc`), behind a lock of their own
//! (`LockedPymalloc`), and with other threads that may only free (`OwnedPymalloc`). Leaves what comes before the lock to
//! `cached.rs`, and pools behind a lock of their callers to `serialized.rs`.

use core::cell::UnsafeCell;
use core::fmt;
use core::ptr::NonNull;

use malloc_api::{Malloc, Pools, ReleaseLevel, Usage};
use pymem_sync::{Lock, RemoteStack};

use crate::checks::annotate;
use crate::pymalloc::{Pymalloc, calloc_by};
use crate::slots::{self, NONE, SlotOf};
use crate::source::{ArenaAllocator, ArenaSource};
#[cfg(feature = "std")]
use crate::sources::region::MmapArenas;
use crate::stats::{PoolStats, Stats};
use crate::walk::walk_pinned;

/// A pool allocator for one thread at a time.
///
/// Blocks up to [`POOLED_MAX`](crate::POOLED_MAX) bytes come from pools, zero-size and larger ones from the fallback `R`.
/// The allocator is `Send` but not `Sync`.
pub struct LocalPymalloc<R: Malloc, S: ArenaSource> {
    core: UnsafeCell<Pymalloc<R, S>>,
}

impl<R: Malloc, S: ArenaSource> LocalPymalloc<R, S> {
    /// An allocator with arenas from `source`.
    #[must_use]
    pub const fn with_source(fallback: R, source: S) -> Self {
        Self { core: UnsafeCell::new(Pymalloc::new(fallback, source)) }
    }

    /// Gives memory back to the system; returns the bytes given back.
    ///
    /// Live blocks are not touched. What goes back costs a page fault when it is needed again. Arenas that a
    /// record set at run time made go back as wholes only.
    pub fn release(&self, level: ReleaseLevel) -> usize {
        self.with(|core| core.release(level))
    }

    pub(crate) fn into_inner(self) -> Pymalloc<R, S> {
        self.core.into_inner()
    }

    /// Calls `f`, which does not allocate or free through `self`, with the allocator itself.
    #[inline(always)]
    fn with<T>(&self, f: impl FnOnce(&mut Pymalloc<R, S>) -> T) -> T {
        // SAFETY: `self` is not `Sync`, and no method calls back into it while the reference lives: `R` and `S` may not
        // allocate through the allocator that uses them (`Malloc` 4, `ArenaSource` 6).
        f(unsafe { &mut *self.core.get() })
    }
}

/// A pool allocator for all threads, behind one lock.
///
/// [`cached`](Self::cached) puts a few free blocks of each thread before the lock.
///
/// A process that forks while other threads allocate must hold the lock over the fork:
/// [`lock_for_fork`](Self::lock_for_fork).
pub struct LockedPymalloc<R: Malloc, S: ArenaSource> {
    pub(crate) core: Lock<Pymalloc<R, S>>,
    pub(crate) slot: SlotOf,
}

impl<R: Malloc, S: ArenaSource> LockedPymalloc<R, S> {
    /// An allocator with arenas from `source`.
    #[must_use]
    pub const fn with_source(fallback: R, source: S) -> Self {
        Self { core: Lock::new(Pymalloc::new(fallback, source)), slot: SlotOf::new() }
    }

    #[inline]
    fn with<T>(&self, f: impl FnOnce(&mut Pymalloc<R, S>) -> T) -> T {
        f(&mut self.core.lock())
    }

    /// Calls `f` with each pool as [`LocalPymalloc::for_each_pool`] does, under the lock: `f` must not use this allocator, or it
    /// waits for ever.
    pub fn for_each_pool(&self, mut f: impl FnMut(PoolStats)) {
        self.with(|core| {
            let mut pools = core.pools();
            while let Some(pool) = pools.next() {
                f(pool);
            }
        });
    }

    /// Takes the lock, for the prepare handler of a fork.
    pub fn lock_for_fork(&self) {
        self.core.raw().lock();
        // SAFETY: 1: locked above.
        unsafe { self.note_fork() };
    }

    /// Notes which process is about to fork.
    ///
    /// # Safety
    ///
    /// 1. The lock is held for the calling thread.
    pub(crate) unsafe fn note_fork(&self) {
        // SAFETY: the lock is held for this thread (1).
        unsafe { &mut *self.core.as_ptr() }.depot.before_fork(slots::process());
    }

    /// Notes that the process has come out of a fork.
    ///
    /// # Safety
    ///
    /// 1. The lock is held for the calling thread, which has [noted the fork](Self::note_fork) before.
    pub(crate) unsafe fn note_after_fork(&self) {
        // SAFETY: the lock is held for this thread (1).
        let core = unsafe { &mut *self.core.as_ptr() };
        core.depot.after_fork(slots::process(), self.slot.own().unwrap_or(&NONE));
    }

    /// Gives the lock back, for the handlers after a fork, in the parent and in the child. A child takes over the free blocks of
    /// the threads that it has not got, when one of its threads next needs the lock.
    ///
    /// # Safety
    ///
    /// 1. This thread, or in the child the thread that forked, called [`lock_for_fork`](Self::lock_for_fork) before.
    pub unsafe fn unlock_after_fork(&self) {
        // SAFETY: 1: by duty 1.
        unsafe { self.note_after_fork() };
        // SAFETY: 1.
        unsafe { self.core.raw().unlock() };
    }

    /// Gives memory back to the system; returns the bytes given back.
    ///
    /// Live blocks are not touched; free ones that the calling thread keeps before the lock go back to their pools. What goes back costs a
    /// page fault when it is needed again. Arenas that a record set at run time made go back as wholes only.
    pub fn release(&self, level: ReleaseLevel) -> usize {
        self.with(|core| {
            core.take_lost_magazines();
            // SAFETY: 1: the calling thread's.
            unsafe { core.release_with(level, self.slot.own()) }
        })
    }
}

/// What all but `OwnedPymalloc` are asked, over `with`.
macro_rules! questions {
    ($name:ident) => {
        impl<R: Malloc, S: ArenaSource> $name<R, S> {
            /// Number of live blocks, those of the fallback included.
            #[must_use]
            pub fn allocated_blocks(&self) -> usize {
                self.with(|core| core.allocated_blocks())
            }

            /// Is `ptr` in an open pool of this allocator? Any pointer value may be asked; null is not.
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

            /// Walks every structure and compares it with every other.
            ///
            /// # Panics
            ///
            /// If an invariant does not hold; the message names the invariant.
            pub fn check_invariants(&self) {
                self.with(|core| core.check_invariants());
            }

            /// Sets the bytes of arenas beyond which no new one is made and requests go to the fallback; `usize::MAX` is
            /// no limit.
            pub fn set_memory_limit(&self, bytes: usize) {
                self.with(|core| core.stock.memory_limit = bytes);
            }

            /// The record through which arenas come and go: the one that was set, else one that stands for the source.
            ///
            /// The latter is usable as long as this allocator stays where it is.
            #[must_use]
            pub fn arena_allocator(&self) -> ArenaAllocator {
                self.with(|core| core.stock.arena_allocator())
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
            pub unsafe fn set_arena_allocator(&self, record: ArenaAllocator) {
                // SAFETY: 1, 2, 3: the caller's.
                self.with(|core| unsafe { core.stock.set_arena_allocator(record) });
            }

            /// Calls `hook` before each new arena, with the counts as of then; `None` stops that.
            ///
            /// # Safety
            ///
            /// 1. `hook` does not use this allocator, which is in the middle of a request.
            /// 2. `hook` does not unwind.
            pub unsafe fn set_new_arena_hook(&self, hook: Option<fn(&Stats)>) {
                self.with(|core| core.new_arena_hook = hook);
            }
        }
    };
}
pub(crate) use questions;

/// The four calls, over `with`.
macro_rules! calls {
    ($name:ident) => {
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
                let elsewhere = || self.with(|core| core.calloc_elsewhere(nelem, elsize));
                calloc_by(self, nelem, elsize, elsewhere)
            }

            #[inline]
            unsafe fn realloc(
                &self,
                ptr: Option<NonNull<u8>>,
                new_size: usize,
            ) -> Option<NonNull<u8>> {
                // SAFETY: 1, 2: the caller's.
                self.with(|core| unsafe { core.realloc(ptr, new_size) })
            }

            #[inline]
            unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
                // SAFETY: 1, 2: the caller's.
                self.with(|core| unsafe { core.free(ptr) });
            }
        }
    };
}

/// What an account asks for, over `with` and `core`.
macro_rules! pools {
    ($name:ident) => {
        // SAFETY: 1: the type is not `Clone`.
        unsafe impl<R: Pools, S: ArenaSource> Pools for $name<R, S> {
            fn usage(&self) -> Usage {
                self.with(|core| core.usage())
            }

            unsafe fn tear_down(&mut self) {
                // SAFETY: 1, 2: the caller's.
                self.with(|core| unsafe { core.tear_down() });
            }
        }
    };
}

pools!(LocalPymalloc);
pools!(LockedPymalloc);

questions!(LocalPymalloc);
questions!(LockedPymalloc);
calls!(LocalPymalloc);
calls!(LockedPymalloc);

impl<R: Malloc, S: ArenaSource> LocalPymalloc<R, S> {
    /// Calls `f` with each pool, free ones too, arena by arena and in the order of their addresses in it.
    ///
    /// Allocates nothing. The order of the arenas is not specified. What an arena has before its first pool (slack for
    /// alignment, its records) and after its last one is not visited. `f` may use this allocator: no arena goes back
    /// meanwhile, and whether the walk meets a pool that `f` opens is not specified.
    pub fn for_each_pool(&self, f: impl FnMut(PoolStats)) {
        walk_pinned(&|work| self.with(work), f);
    }
}

/// Smallest block in bytes of an [`OwnedPymalloc`]: room for the link by which a block waits in the remote stack.
const BLOCK_BYTES_MIN: usize = size_of::<usize>();

/// A pool allocator with one owner; other threads free its blocks through [`Remote`] handles.
///
/// The owner's paths take no lock. Where a class's first pool has no freed block, the owner looks at the remote stack: one
/// relaxed load. A remote free is one compare-and-swap onto the lock-free stack of `pymem-sync`, from which the owner
/// takes all blocks at once.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "std")] {
/// use malloc_api::{LibcMalloc, Malloc};
/// use pymalloc_core::OwnedPymalloc;
///
/// let owned = OwnedPymalloc::new(LibcMalloc);
/// let block = owned.malloc(24).unwrap();
/// let (remote, address) = (owned.remote(), block.as_ptr().expose_provenance());
/// std::thread::scope(|scope| {
///     scope.spawn(move || {
///         let block = std::ptr::with_exposed_provenance_mut::<u8>(address);
///         // SAFETY: (1) a live block of `owned`; (2) forgotten here.
///         unsafe { remote.free(std::ptr::NonNull::new(block)) };
///     });
/// });
/// owned.collect();
/// assert_eq!(owned.allocated_blocks(), 0);
/// # }
/// ```
pub struct OwnedPymalloc<R: Malloc, S: ArenaSource> {
    local: LocalPymalloc<R, S>,
    remote: RemoteStack,
}

/// The way for other threads to free blocks of an [`OwnedPymalloc`].
#[derive(Clone, Copy, Debug)]
pub struct Remote<'a> {
    stack: &'a RemoteStack,
}

impl Remote<'_> {
    /// Hands `ptr` back to the owner, who may reuse it after its next [`collect`](OwnedPymalloc::collect); `None` does
    /// nothing.
    ///
    /// # Safety
    ///
    /// 1. `ptr` is `None` or a live block of the allocator that this handle is of.
    /// 2. The block is not used afterwards.
    pub unsafe fn free(self, ptr: Option<NonNull<u8>>) {
        if let Some(block) = ptr {
            annotate::in_transit(block);
            // SAFETY: 1: a block has a word at least (`BLOCK_BYTES_MIN`) and is aligned to two; 2: by 2, it is the stack's.
            unsafe { self.stack.push(block) };
        }
    }
}

impl<R: Malloc, S: ArenaSource> OwnedPymalloc<R, S> {
    /// An allocator with arenas from `source`.
    #[must_use]
    pub const fn with_source(fallback: R, source: S) -> Self {
        Self { local: LocalPymalloc::with_source(fallback, source), remote: RemoteStack::new() }
    }

    /// A handle for other threads.
    #[must_use]
    pub const fn remote(&self) -> Remote<'_> {
        Remote { stack: &self.remote }
    }

    /// Takes back the blocks that other threads have freed; returns how many. The owner's requests do this too: each
    /// `calloc` and `realloc`, and a `malloc` for which the first pool of the class has no freed block.
    pub fn collect(&self) -> usize {
        let mut count = 0;
        for block in self.remote.drain() {
            // SAFETY: 1, 2: `Remote::free` 1 and 2.
            unsafe { self.local.free(Some(block)) };
            count += 1;
        }
        count
    }

    /// Number of live blocks, those that wait to be collected included.
    #[must_use]
    pub fn allocated_blocks(&self) -> usize {
        self.local.allocated_blocks()
    }

    /// Counts as of now, after a [`collect`](Self::collect).
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.collect();
        self.local.stats()
    }

    /// Collects, and gives memory back to the system; returns the bytes given back.
    pub fn release(&self, level: ReleaseLevel) -> usize {
        self.collect();
        self.local.release(level)
    }

    /// Asserts every invariant; see [`LocalPymalloc::check_invariants`].
    ///
    /// # Panics
    ///
    /// If an invariant does not hold.
    pub fn check_invariants(&self) {
        self.local.check_invariants();
    }
}

// SAFETY: 1: the local allocator's, and a block comes back from the stack once per remote free; 2, 3: the local
// allocator's; 4: no path unwinds, and `R` and `S` do not call back.
unsafe impl<R: Malloc, S: ArenaSource> Malloc for OwnedPymalloc<R, S> {
    #[inline]
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        let size = size.max(BLOCK_BYTES_MIN);
        match self.local.with(|core| core.malloc_cached(size)) {
            None => {
                self.collect();
                self.local.malloc(size)
            }
            block => block,
        }
    }

    #[inline]
    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        let size = nelem.checked_mul(elsize)?.max(BLOCK_BYTES_MIN);
        self.collect();
        self.local.calloc(1, size)
    }

    #[inline]
    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        self.collect();
        // SAFETY: 1, 2: the caller's.
        unsafe { self.local.realloc(ptr, new_size.max(BLOCK_BYTES_MIN)) }
    }

    #[inline]
    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        // SAFETY: 1, 2: the caller's.
        unsafe { self.local.free(ptr) };
    }
}

impl<R: Malloc, S: ArenaSource> Drop for OwnedPymalloc<R, S> {
    /// Takes back what other threads have freed before the allocator ends.
    fn drop(&mut self) {
        self.collect();
    }
}

/// Arenas from `mmap`, for an allocator that any caller may make.
macro_rules! mapped {
    ($name:ident) => {
        #[cfg(feature = "std")]
        impl<R: Malloc> $name<R, MmapArenas> {
            /// An allocator with arenas from `mmap` that sends zero-size and large requests to `fallback`.
            #[must_use]
            pub const fn new(fallback: R) -> Self {
                Self::with_source(fallback, MmapArenas::new())
            }
        }
    };
}

mapped!(LocalPymalloc);
mapped!(LockedPymalloc);
mapped!(OwnedPymalloc);

macro_rules! debug {
    ($name:ident) => {
        impl<R: Malloc, S: ArenaSource> fmt::Debug for $name<R, S> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name))
                    .field("allocated_blocks", &self.allocated_blocks())
                    .finish_non_exhaustive()
            }
        }
    };
}
pub(crate) use debug;

debug!(LocalPymalloc);
debug!(LockedPymalloc);
debug!(OwnedPymalloc);
