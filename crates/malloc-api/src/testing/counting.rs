//! Owns `Counting`: calls per method and live blocks of the allocator below it.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::Malloc;

/// Counts the calls of each method and the live blocks of the allocator that it wraps.
///
/// Blocks are counted, not bytes: a `free` does not say how many bytes it returns. A block that came from
/// [`inner`](Counting::inner) is not counted until it is freed here. Counters are independent of each other; read them while no
/// other thread calls to get a consistent [`Counts`].
///
/// # Examples
///
/// ```
/// use malloc_api::{LibcMalloc, Malloc, testing::Counting};
///
/// let counting = Counting::new(LibcMalloc);
/// let block = counting.malloc(100);
/// assert_eq!(counting.counts().live_blocks, 1);
/// // SAFETY: (1) `block` is live and (2) not used afterwards.
/// unsafe { counting.free(block) };
/// assert_eq!(counting.counts().live_blocks, 0);
/// assert_eq!(counting.counts().peak_blocks, 1);
/// ```
#[derive(Debug, Default)]
pub struct Counting<A> {
    inner: A,
    malloc: AtomicUsize,
    calloc: AtomicUsize,
    realloc: AtomicUsize,
    free: AtomicUsize,
    failed: AtomicUsize,
    live: AtomicUsize,
    peak: AtomicUsize,
}

/// What a [`Counting`] has seen since it was made or [`reset_calls`](Counting::reset_calls).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Calls of `malloc`.
    pub malloc: usize,
    /// Calls of `calloc`.
    pub calloc: usize,
    /// Calls of `realloc`, those of `None` included.
    pub realloc: usize,
    /// Calls of `free`, those of `None` included.
    pub free: usize,
    /// Calls of the first three that answered `None`.
    pub failed: usize,
    /// Blocks handed out and not given back.
    pub live_blocks: usize,
    /// The most `live_blocks` there ever were at one time; not reset.
    pub peak_blocks: usize,
}

impl Counts {
    /// Calls of `malloc`, `calloc`, `realloc` and `free` together.
    #[must_use]
    pub const fn calls(&self) -> usize {
        self.malloc + self.calloc + self.realloc + self.free
    }
}

impl<A> Counting<A> {
    /// Wraps `inner` with all counters at zero.
    #[must_use]
    pub const fn new(inner: A) -> Self {
        Self {
            inner,
            malloc: AtomicUsize::new(0),
            calloc: AtomicUsize::new(0),
            realloc: AtomicUsize::new(0),
            free: AtomicUsize::new(0),
            failed: AtomicUsize::new(0),
            live: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
        }
    }

    /// The wrapped allocator.
    pub const fn inner(&self) -> &A {
        &self.inner
    }

    /// The counters now.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            malloc: self.malloc.load(Relaxed),
            calloc: self.calloc.load(Relaxed),
            realloc: self.realloc.load(Relaxed),
            free: self.free.load(Relaxed),
            failed: self.failed.load(Relaxed),
            live_blocks: self.live.load(Relaxed),
            peak_blocks: self.peak.load(Relaxed),
        }
    }

    /// Sets the counters of calls to zero; those of blocks stay, since the blocks do.
    pub fn reset_calls(&self) {
        for counter in [&self.malloc, &self.calloc, &self.realloc, &self.free, &self.failed] {
            counter.store(0, Relaxed);
        }
    }

    fn handed_out(&self, block: Option<NonNull<u8>>) -> Option<NonNull<u8>> {
        if block.is_some() {
            // A block that came from `inner` may have been freed here, so that the count can be below zero.
            let live = self.live.fetch_add(1, Relaxed).wrapping_add(1);
            self.peak.fetch_max(live, Relaxed);
        } else {
            self.failed.fetch_add(1, Relaxed);
        }
        block
    }
}

// SAFETY: every method answers what the same method of `A` answers, which keeps promises 1-5.
unsafe impl<A: Malloc> Malloc for Counting<A> {
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        self.malloc.fetch_add(1, Relaxed);
        self.handed_out(self.inner.malloc(size))
    }

    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        self.calloc.fetch_add(1, Relaxed);
        self.handed_out(self.inner.calloc(nelem, elsize))
    }

    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        self.realloc.fetch_add(1, Relaxed);
        // SAFETY: the caller's duties 1 and 2 are those of `A::realloc`.
        let block = unsafe { self.inner.realloc(ptr, new_size) };
        match (ptr, block) {
            (None, _) => self.handed_out(block),
            (Some(_), None) => {
                self.failed.fetch_add(1, Relaxed);
                None
            }
            (Some(_), Some(_)) => block,
        }
    }

    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        self.free.fetch_add(1, Relaxed);
        if ptr.is_some() {
            self.live.fetch_sub(1, Relaxed);
        }
        // SAFETY: the caller's duties 1 and 2 are those of `A::free`.
        unsafe { self.inner.free(ptr) }
    }
}
