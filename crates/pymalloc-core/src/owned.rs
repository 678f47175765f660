//! Owns `OwnedPymalloc`: one allocator a thread, whose blocks any other thread may free without a lock.

use core::cell::UnsafeCell;
use core::fmt;
use core::ptr::NonNull;

use malloc_api::{Malloc, ReleaseLevel};
use pymem_sync::RemoteStack;

use crate::checks::annotate;
use crate::pymalloc::Pymalloc;
use crate::source::ArenaSource;
use crate::stats::Stats;

#[cfg(feature = "std")]
use crate::sources::mmap_arenas::MmapArenas;

/// Smallest block in bytes: room for the link by which a block waits in the remote stack.
const BLOCK_BYTES_MIN: usize = size_of::<usize>();

/// A pool allocator with one owner; other threads free its blocks through [`Remote`] handles.
///
/// The owner's paths take no lock and no atomic step but one relaxed load when a class's first pool has no freed block. A remote free is one
/// compare-and-swap onto the lock-free stack of `pymem-sync`, from which the owner takes all blocks at once.
///
/// # Examples
///
/// ```
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
/// ```
pub struct OwnedPymalloc<R: Malloc, S: ArenaSource> {
    core: UnsafeCell<Pymalloc<R, S>>,
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
            // SAFETY: 1: a block has a word at least (`BLOCK_BYTES_MIN`) and is aligned to two; 2 gives it to the stack.
            unsafe { self.stack.push(block) };
        }
    }
}

#[cfg(feature = "std")]
impl<R: Malloc> OwnedPymalloc<R, MmapArenas> {
    /// An allocator with arenas from `mmap` that sends what is not for its pools to `raw`.
    #[must_use]
    pub const fn new(raw: R) -> Self {
        Self::with_source(raw, MmapArenas::new())
    }
}

impl<R: Malloc, S: ArenaSource> OwnedPymalloc<R, S> {
    /// An allocator with arenas from `source`.
    #[must_use]
    pub const fn with_source(raw: R, source: S) -> Self {
        Self { core: UnsafeCell::new(Pymalloc::new(raw, source)), remote: RemoteStack::new() }
    }

    /// A handle for other threads.
    #[must_use]
    pub const fn remote(&self) -> Remote<'_> {
        Remote { stack: &self.remote }
    }

    #[inline(always)]
    fn with<T>(&self, f: impl FnOnce(&mut Pymalloc<R, S>) -> T) -> T {
        // SAFETY: `self` is not `Sync`, `Remote` does not lead here, and nothing that `f` does calls back into `self`.
        f(unsafe { &mut *self.core.get() })
    }

    /// Takes back the blocks that other threads have freed; returns how many. A class without a freed block at hand does this too.
    pub fn collect(&self) -> usize {
        let mut count = 0;
        for block in self.remote.drain() {
            // SAFETY: `Remote::free` 1 and 2: a live block of this allocator that nobody uses.
            self.with(|core| unsafe { core.free(Some(block)) });
            count += 1;
        }
        count
    }

    /// Number of live blocks, those that wait to be collected included.
    #[must_use]
    pub fn allocated_blocks(&self) -> usize {
        self.with(|core| core.allocated_blocks())
    }

    /// Counts as of now, after a [`collect`](Self::collect).
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.collect();
        self.with(|core| core.stats())
    }

    /// Collects, and gives memory back to the system; returns the bytes given back.
    pub fn release(&self, level: ReleaseLevel) -> usize {
        self.collect();
        self.with(|core| core.release(level))
    }

    /// Asserts every invariant; see [`Pymalloc::check_invariants`].
    ///
    /// # Panics
    ///
    /// If one does not hold.
    pub fn check_invariants(&self) {
        self.with(|core| core.check_invariants());
    }
}

// SAFETY: 1: the core keeps it, and a block comes back from the stack once per remote free; 2, 3: the core's; 4: no path
// unwinds, and `R` and `S` do not call back.
unsafe impl<R: Malloc, S: ArenaSource> Malloc for OwnedPymalloc<R, S> {
    #[inline]
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        let size = size.max(BLOCK_BYTES_MIN);
        match self.with(|core| core.malloc_cached(size)) {
            None => {
                self.collect();
                self.with(|core| core.malloc(size))
            }
            block => block,
        }
    }

    #[inline]
    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        let size = nelem.checked_mul(elsize)?.max(BLOCK_BYTES_MIN);
        self.with(|core| core.calloc(1, size))
    }

    #[inline]
    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        let size = new_size.max(BLOCK_BYTES_MIN);
        // SAFETY: the caller's duties 1 and 2 are the same.
        self.with(|core| unsafe { core.realloc(ptr, size) })
    }

    #[inline]
    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        // SAFETY: the caller's duties 1 and 2 are the same.
        self.with(|core| unsafe { core.free(ptr) });
    }
}

impl<R: Malloc, S: ArenaSource> Drop for OwnedPymalloc<R, S> {
    /// Takes back what other threads have freed before the allocator ends.
    fn drop(&mut self) {
        self.collect();
    }
}

impl<R: Malloc, S: ArenaSource> fmt::Debug for OwnedPymalloc<R, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnedPymalloc")
            .field("allocated_blocks", &self.allocated_blocks())
            .finish_non_exhaustive()
    }
}
