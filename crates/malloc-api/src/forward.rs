//! Owns `Forward`: an allocator that is only another name for an allocator that it holds.

use core::ptr::NonNull;

use crate::malloc::Malloc;

/// An allocator whose four calls are those of an allocator that it refers to.
///
/// Every `Forward` type is a [`Malloc`]. A wrapper that changes a call implements [`Malloc`] itself.
///
/// # Safety
///
/// An implementation promises that
///
/// 1. [`target`](Forward::target) of a value is always the same allocator, also after the value was moved;
/// 2. clones of the value have the same target;
/// 3. `target` neither unwinds nor allocates through the allocator.
pub unsafe trait Forward {
    /// The allocator that serves the calls.
    type Target: Malloc + ?Sized;

    /// The allocator that serves the calls.
    fn target(&self) -> &Self::Target;
}

// SAFETY: 1 and 2: a reference and its copies refer to one allocator; 3: a copy of a pointer.
unsafe impl<A: Malloc + ?Sized> Forward for &A {
    type Target = A;

    #[inline]
    fn target(&self) -> &A {
        self
    }
}

// SAFETY: each method is the same method of one allocator (duties 1 and 2 of `Forward`), which keeps promises 1 to 5;
// finding the allocator adds nothing (duty 3).
unsafe impl<F: Forward> Malloc for F {
    #[inline]
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        self.target().malloc(size)
    }

    #[inline]
    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        self.target().calloc(nelem, elsize)
    }

    #[inline]
    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        // SAFETY: the caller's duties 1 and 2 are those of the target's `realloc`.
        unsafe { self.target().realloc(ptr, new_size) }
    }

    #[inline]
    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        // SAFETY: the caller's duties 1 and 2 are those of the target's `free`.
        unsafe { self.target().free(ptr) }
    }
}
