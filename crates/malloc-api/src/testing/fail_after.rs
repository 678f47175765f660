//! Owns `FailAfter`: an allocator that runs out of memory at a chosen call.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::Malloc;

/// Lets a chosen number of allocations through to the allocator that it wraps and fails those after them.
///
/// An allocation is a call of `malloc`, `calloc` or `realloc`, whatever it answers; `free` always goes through.
/// Allocations are counted from 1: those in `start < number <= stop` answer `None` without reaching the inner
/// allocator, which are the semantics of `set_nomemory(start, stop)` in CPython's `_testcapi`.
///
/// To visit every failure point of a program, run it with [`set(n)`](FailAfter::set) for n = 0, 1, 2 … until a run has
/// no [`failures`](FailAfter::failures).
///
/// # Examples
///
/// ```
/// use malloc_api::{LibcMalloc, Malloc, testing::FailAfter};
///
/// let failing = FailAfter::new(LibcMalloc, 1);
/// let first = failing.malloc(10);
/// assert!(first.is_some());
/// assert!(failing.malloc(10).is_none());
/// assert_eq!((failing.calls(), failing.failures()), (2, 1));
/// // SAFETY: (1) `first` is live and (2) not used afterwards.
/// unsafe { failing.free(first) };
/// ```
#[derive(Debug)]
pub struct FailAfter<A> {
    inner: A,
    start: AtomicUsize,
    stop: AtomicUsize,
    calls: AtomicUsize,
    failures: AtomicUsize,
}

impl<A> FailAfter<A> {
    /// Wraps `inner`; the first `start` allocations go through and every later one fails.
    ///
    /// 0 fails the first allocation already; `usize::MAX` never fails.
    #[must_use]
    pub const fn new(inner: A, start: usize) -> Self {
        Self {
            inner,
            start: AtomicUsize::new(start),
            stop: AtomicUsize::new(usize::MAX),
            calls: AtomicUsize::new(0),
            failures: AtomicUsize::new(0),
        }
    }

    /// Counts from zero again; the next `start` allocations go through and every later one fails.
    pub fn set(&self, start: usize) {
        self.set_window(start, usize::MAX);
    }

    /// Counts from zero again; of the next allocations those with `start < number <= stop` fail.
    ///
    /// `set_window(n, n + 1)` fails one allocation only. A `stop` of at most `start` never fails. Call it while no
    /// other thread allocates: the bounds and the count are separate words.
    pub fn set_window(&self, start: usize, stop: usize) {
        self.start.store(start, Relaxed);
        self.stop.store(stop, Relaxed);
        self.calls.store(0, Relaxed);
        self.failures.store(0, Relaxed);
    }

    /// Counts from zero again and fails nothing.
    pub fn disarm(&self) {
        self.set(usize::MAX);
    }

    /// Allocations since the last `set`, failed ones included.
    #[must_use]
    pub fn calls(&self) -> usize {
        self.calls.load(Relaxed)
    }

    /// Allocations since the last `set` that this wrapper failed.
    #[must_use]
    pub fn failures(&self) -> usize {
        self.failures.load(Relaxed)
    }

    /// The wrapped allocator.
    pub const fn inner(&self) -> &A {
        &self.inner
    }

    fn fails_now(&self) -> bool {
        let number = self.calls.fetch_add(1, Relaxed).wrapping_add(1);
        let fails = number > self.start.load(Relaxed) && number <= self.stop.load(Relaxed);
        if fails {
            self.failures.fetch_add(1, Relaxed);
        }
        fails
    }
}

// SAFETY: a call that goes through answers what `A` answers, which keeps promises 1-5; one that fails touches nothing,
// which is all that promise 3 asks of a failure.
unsafe impl<A: Malloc> Malloc for FailAfter<A> {
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        if self.fails_now() { None } else { self.inner.malloc(size) }
    }

    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        if self.fails_now() { None } else { self.inner.calloc(nelem, elsize) }
    }

    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        if self.fails_now() {
            return None;
        }
        // SAFETY: the caller's duties 1 and 2 are those of `A::realloc`.
        unsafe { self.inner.realloc(ptr, new_size) }
    }

    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        // SAFETY: the caller's duties 1 and 2 are those of `A::free`.
        unsafe { self.inner.free(ptr) }
    }
}
