//! Owns `Mourned`: the obj domain, whose dead code objects a profile's stacks are told.

use std::ptr::NonNull;

use malloc_api::Malloc;

use crate::host::python_stacks::Mourner;

/// An allocator whose freed code objects are counted, so that their names need not keep them.
#[derive(Debug)]
pub(crate) struct Mourned<A> {
    inner: A,
    mourner: Mourner,
}

impl<A> Mourned<A> {
    /// The blocks of `inner`, of which the `mourner` is told.
    ///
    /// # Safety
    ///
    /// 1. Every block of `inner` has 16 bytes at least, and the interpreter has the GIL.
    pub(crate) const unsafe fn new(inner: A, mourner: Mourner) -> Self {
        Self { inner, mourner }
    }
}

impl<A: Malloc> Mourned<A> {
    /// Frees a code object.
    ///
    /// # Safety
    ///
    /// Those of [`Malloc::free`].
    #[cold]
    #[inline(never)]
    unsafe fn free_code(&self, code: NonNull<u8>) {
        self.mourner.count(code);
        // SAFETY: the caller's duties 1 and 2 are those of `inner`.
        unsafe { self.inner.free(Some(code)) };
    }
}

// SAFETY: 1 to 5 are those of `inner`, whose blocks are handed out as they are; a count neither unwinds nor allocates.
unsafe impl<A: Malloc> Malloc for Mourned<A> {
    #[inline]
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        self.inner.malloc(size)
    }

    #[inline]
    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        self.inner.calloc(nelem, elsize)
    }

    #[inline]
    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        // No code object is resized.
        // SAFETY: the caller's duties 1 and 2 are those of `inner`.
        unsafe { self.inner.realloc(ptr, new_size) }
    }

    #[inline]
    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        // SAFETY: 1: a live block (the caller's duty 1), of 16 bytes by the duty of `new`.
        match ptr.filter(|block| unsafe { self.mourner.is_code(*block) }) {
            // SAFETY: the caller's duties 1 and 2 are those of `inner`.
            Some(code) => unsafe { self.free_code(code) },
            // SAFETY: as above.
            None => unsafe { self.inner.free(ptr) },
        }
    }
}
