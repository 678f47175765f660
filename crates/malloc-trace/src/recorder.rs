//! Owns `Recorder<A>`, which tells a call log of the calls of one domain. Leaves the log to `log.rs`.

use std::ptr::NonNull;

use malloc_api::{Domain, Malloc};

use crate::caller::Outermost;
use crate::log::CallLog;
use crate::log_reader::Told;

/// Serves one domain through `A` and tells a [`CallLog`] of every call that succeeds.
///
/// Calls of `free(None)` and calls that fail are served, and not told. So are calls within a recorded call of the same
/// thread: what the obj domain asks of the raw domain is recorded once, as the call of the program.
#[derive(Debug)]
pub struct Recorder<'a, A> {
    inner: A,
    domain: Domain,
    log: &'a CallLog,
}

impl<'a, A> Recorder<'a, A> {
    /// Wraps `inner`, which serves `domain`.
    #[must_use]
    pub const fn new(inner: A, domain: Domain, log: &'a CallLog) -> Self {
        Self { inner, domain, log }
    }

    /// The wrapped allocator.
    pub const fn inner(&self) -> &A {
        &self.inner
    }

    /// Tells of a call that made a block, if the call did.
    #[inline]
    fn made(&self, told: Told, block: Option<NonNull<u8>>, size: usize) -> Option<NonNull<u8>> {
        if let Some(block) = block {
            self.log.append(told, self.domain, block, size);
        }
        block
    }
}

// SAFETY: every method answers what the same method of `A` answers (1-3, 5); the log neither unwinds nor calls `A` (4).
unsafe impl<A: Malloc> Malloc for Recorder<'_, A> {
    #[inline]
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        let Some(_outermost) = Outermost::enter() else { return self.inner.malloc(size) };
        self.made(Told::Malloc, self.inner.malloc(size), size)
    }

    #[inline]
    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        let Some(_outermost) = Outermost::enter() else { return self.inner.calloc(nelem, elsize) };
        // A product that overflows is told of nobody: then there is no block.
        let size = nelem.wrapping_mul(elsize);
        self.made(Told::Calloc, self.inner.calloc(nelem, elsize), size)
    }

    #[inline]
    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        let Some(_outermost) = Outermost::enter() else {
            // SAFETY: the caller's duties 1 and 2 are those of `A::realloc`.
            return unsafe { self.inner.realloc(ptr, new_size) };
        };
        // The old address may be handed out to another thread before the call returns, so the log has it first.
        if let Some(old) = ptr {
            self.log.append(Told::Moving, self.domain, old, 0);
        }
        // SAFETY: the caller's duties 1 and 2 are those of `A::realloc`.
        let block = unsafe { self.inner.realloc(ptr, new_size) };
        match (ptr, block) {
            (None, _) => self.made(Told::ReallocOfNone, block, new_size),
            (Some(old), None) => {
                self.log.append(Told::NotMoved, self.domain, old, 0);
                None
            }
            (Some(_), Some(_)) => self.made(Told::Moved, block, new_size),
        }
    }

    #[inline]
    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        let outermost = Outermost::enter();
        // Before the block can be handed out again.
        if let (Some(_), Some(block)) = (&outermost, ptr) {
            self.log.append(Told::Free, self.domain, block, 0);
        }
        // SAFETY: the caller's duties 1 and 2 are those of `A::free`.
        unsafe { self.inner.free(ptr) };
        drop(outermost);
    }
}
