//! Owns [`CachedPymalloc`]: the pools of a `LockedPymalloc` with magazines of each thread before the lock. Leaves a
//! thread's magazines, and how it finds them, to `slots.rs`.

use core::fmt;
use core::ptr::{self, NonNull};

use malloc_api::Malloc;
use pymem_sync::LockGuard;

use crate::access::LockedPymalloc;
use crate::checks::annotate;
use crate::checks::hardened;
use crate::config::{GRAIN_BYTES, POOLED_MAX};

use crate::pymalloc::{Pymalloc, calloc_by};
use crate::size_class::{CLASS_OF_GRAINS, SizeClass};
use crate::slots::{Home, Magazines, NONE, Slot, UNKNOWN};
use crate::source::ArenaSource;

/// The pools of a [`LockedPymalloc`] for all threads, of which each keeps a few free blocks and rarely takes the lock.
///
/// [`LockedPymalloc::cached`] makes it. Both are faces of the same pools: a block of one may be freed through the other.
///
/// A thread has up to 16 free blocks of each class and not more than 8 KiB of them; of a class for which it often takes the lock up to
/// 128. A thread that waits for others at the lock again and again has up to 512 and 32 KiB, and pools and arenas of its own until it
/// ends. Free blocks count as free, and go back when the thread ends, when memory is given back in one of its calls, and when it
/// calls `release`. A forked child takes over those of the threads that it has not got.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "std")] {
/// use malloc_api::{LibcMalloc, Malloc};
/// use pymalloc_core::{LockedPymalloc, MmapArenas};
///
/// static POOLS: LockedPymalloc<LibcMalloc, MmapArenas> = LockedPymalloc::new(LibcMalloc);
///
/// if let Some(cached) = POOLS.cached() {
///     let block = cached.malloc(48);
///     assert_eq!(POOLS.allocated_blocks(), 1);
///     // SAFETY: 1: a live block of the same pools; 2: forgotten here.
///     unsafe { POOLS.free(block) };
/// }
/// # }
/// ```
#[repr(transparent)]
pub struct CachedPymalloc<R: Malloc, S: ArenaSource>(
    /// Invariant 1: lives for ever, and its slot has been started.
    LockedPymalloc<R, S>,
);

impl<R: Malloc + Send + 'static, S: ArenaSource + Send + 'static> LockedPymalloc<R, S> {
    /// The same pools, with magazines of each thread before the lock.
    ///
    /// `None` on other systems than Linux on x86-64 and AArch64, and in builds with the features `hardened`, `asan` or `valgrind`,
    /// which look at each block. Eight allocators of a process have magazines, those that are used first; the others do without.
    #[must_use]
    pub fn cached(&'static self) -> Option<&'static CachedPymalloc<R, S>> {
        if annotate::IS_ON || hardened::IS_ON || !self.slot.start() {
            return None;
        }
        let this = ptr::from_ref(self).cast::<CachedPymalloc<R, S>>();
        // SAFETY: the type has the layout of `self`, which lives for ever.
        Some(unsafe { &*this })
    }
}

impl<R: Malloc + Send + 'static, S: ArenaSource + Send + 'static> CachedPymalloc<R, S> {
    /// The calling thread's magazines, or those that take and give nothing.
    #[inline(always)]
    fn magazines(&self) -> &'static Magazines {
        // SAFETY: 1: invariant 1.
        unsafe { self.0.slot.get() }.get()
    }

    /// The calling thread's magazines, which it gets if it is new here. Under the lock, which protects `core`; a child takes over
    /// those of lost threads first, so that none of its own threads has them before.
    #[inline(always)]
    fn known(&self, core: &mut Pymalloc<R, S>) -> &'static Magazines {
        core.take_lost_magazines();
        let own = self.magazines();
        if ptr::eq(own, &UNKNOWN) { self.introduce(core) } else { own }
    }

    /// The pools, and the calling thread's magazines.
    #[inline]
    fn lock(&self) -> (LockGuard<'_, Pymalloc<R, S>>, &'static Magazines) {
        let free = self.0.core.try_lock();
        let has_waited = free.is_none();
        let mut core = free.unwrap_or_else(|| self.0.core.lock());
        let own = self.known(&mut core);
        if has_waited {
            // SAFETY: 1: the calling thread's.
            unsafe { core.note_meeting(own) };
        }
        (core, own)
    }

    /// Gives the calling thread magazines, or those that take and give nothing.
    #[cold]
    #[inline(never)]
    fn introduce(&self, core: &mut Pymalloc<R, S>) -> &'static Magazines {
        if !self.0.slot.is_claimed() {
            self.0.slot.set(Slot::claim());
        }
        // SAFETY: 1: invariant 1.
        let slot = unsafe { self.0.slot.get() };
        let own = slot.get();
        if !ptr::eq(own, &UNKNOWN) {
            return own;
        }
        let this = ptr::from_ref(self);
        // SAFETY: invariant 1.
        let home = unsafe { &*this };
        let own = core.magazines_for(home).unwrap_or(&NONE);
        if slot.set(own) {
            return own;
        }
        if own.home().is_some() {
            // SAFETY: 1: they are empty, and nobody has used them.
            unsafe { core.take_magazines_back(own) };
        }
        &NONE
    }

    /// Takes a block and some more of its class from the pools; zero bytes and a large request go to the fallback.
    #[cold]
    #[inline(never)]
    fn malloc_slow(&self, size: usize) -> Option<NonNull<u8>> {
        let (mut core, own) = self.lock();
        // SAFETY: 1: the calling thread's.
        unsafe { core.malloc_many(size, own) }
    }

    /// Zero bytes and a large request, which go to the fallback.
    #[cold]
    #[inline(never)]
    fn calloc_slow(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        self.0.calloc(nelem, elsize)
    }

    /// Puts a block and some more of its class into the pools, or the fallback.
    ///
    /// # Safety
    ///
    /// 1. `block` is a live block of this allocator.
    /// 2. It is not used afterwards.
    #[cold]
    #[inline(never)]
    unsafe fn free_slow(&self, block: NonNull<u8>) {
        let (mut core, own) = self.lock();
        // SAFETY: 1, 2: the caller's; 3: the calling thread's.
        unsafe { core.free_many(block, own) };
    }
}

impl<R: Malloc + Send + 'static, S: ArenaSource + Send + 'static> Home for CachedPymalloc<R, S> {
    unsafe fn take_from_ended(&self, magazines: &'static Magazines) {
        // SAFETY: 1: the caller's.
        unsafe { self.0.core.lock().take_magazines_back(magazines) };
    }
}

// SAFETY: 1: a block is in one place only: handed out, in one thread's magazine, or free in its pool; blocks move between the
// latter two under the lock; 2: `calloc` clears, `realloc` copies; 3: `realloc` frees after the copy alone; 4: no path unwinds, and
// `R` and `S` do not call back.
unsafe impl<R: Malloc + Send + 'static, S: ArenaSource + Send + 'static> Malloc
    for CachedPymalloc<R, S>
{
    #[inline]
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        if size > POOLED_MAX {
            return self.malloc_slow(size);
        }
        // SAFETY: `size` is at most `POOLED_MAX`, so the index is in the table.
        let row = unsafe { *CLASS_OF_GRAINS.get_unchecked(size.div_ceil(GRAIN_BYTES)) };
        // SAFETY: 1: the calling thread's; 2: the table holds class bytes, and 0 for no bytes.
        match unsafe { self.magazines().rack.pop(usize::from(row)) } {
            None => self.malloc_slow(size),
            block => block,
        }
    }

    #[inline]
    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        calloc_by(self, nelem, elsize, || self.calloc_slow(nelem, elsize))
    }

    #[inline]
    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        let Some(old) = ptr else {
            return self.malloc(new_size);
        };
        // SAFETY: 1: the caller's.
        let row = unsafe { self.magazines().class_byte(old.addr().get()) };
        let Some(class) = SizeClass::from_byte(row) else {
            // SAFETY: 1, 2: the caller's.
            return unsafe { self.0.realloc(ptr, new_size) };
        };
        if class.keeps(new_size) {
            return ptr;
        }
        let new = self.malloc(new_size)?;
        // SAFETY: both blocks are live and distinct, and each has at least this many bytes.
        unsafe { new.copy_from_nonoverlapping(old, class.size().min(new_size)) };
        // SAFETY: 1, 2: the old block has been copied and is dead to the caller.
        unsafe { self.free(ptr) };
        Some(new)
    }

    #[inline]
    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        let Some(block) = ptr else { return };
        let own = self.magazines();
        // SAFETY: 1: the caller's.
        let row = unsafe { own.class_byte(block.addr().get()) };
        // SAFETY: 1: the calling thread's; 2: a class byte, or 0.
        if !unsafe { own.rack.push(usize::from(row), block) } {
            // SAFETY: 1, 2: the caller's.
            unsafe { self.free_slow(block) };
        }
    }
}

impl<R: Malloc, S: ArenaSource> fmt::Debug for CachedPymalloc<R, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CachedPymalloc").field(&self.0).finish()
    }
}
