//! Owns `GlobalAdapter`: any `Malloc` as Rust's global allocator. Leaves layouts to `layout.rs`.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{self, NonNull};

use crate::{Malloc, layout};

/// Makes any [`Malloc`] a [`GlobalAlloc`], for `#[global_allocator]`.
///
/// Alignments above [`MIN_ALIGN`](crate::MIN_ALIGN) cost that many bytes more per block. `alloc_zeroed` goes through
/// `calloc`. Zero-size layouts, which callers must not pass, get a dangling pointer without a call.
/// A static needs `A: Sync`. For collections with an allocator of their own see `AllocatorAdapter`; it is another
/// type because the standard library means to implement `Allocator` for every `GlobalAlloc`.
///
/// # Examples
///
/// ```
/// use malloc_api::{GlobalAdapter, LibcMalloc};
///
/// #[global_allocator]
/// static GLOBAL: GlobalAdapter<LibcMalloc> = GlobalAdapter::new(LibcMalloc);
///
/// assert_eq!(vec![1, 2, 3].len(), 3);
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct GlobalAdapter<A> {
    inner: A,
}

impl<A> GlobalAdapter<A> {
    /// Wraps `inner`.
    #[must_use]
    pub const fn new(inner: A) -> Self {
        Self { inner }
    }

    /// The wrapped allocator.
    pub const fn inner(&self) -> &A {
        &self.inner
    }
}

fn as_raw(block: Option<NonNull<u8>>) -> *mut u8 {
    block.map_or(ptr::null_mut(), NonNull::as_ptr)
}

// SAFETY: blocks are those of `layout.rs`, valid for their layout by promises 1-3 of `Malloc`; no method unwinds (4).
unsafe impl<A: Malloc> GlobalAlloc for GlobalAdapter<A> {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        as_raw(layout::allocate(&self.inner, layout))
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        as_raw(layout::allocate_zeroed(&self.inner, layout))
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: a live block is not null (the caller's first duty).
        let block = unsafe { NonNull::new_unchecked(block) };
        // SAFETY: (1) the caller passes a live block of this allocator with its layout; (2) and gives it up.
        unsafe { layout::deallocate(&self.inner, block, layout) }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: a live block is not null (the caller's first duty).
        let block = unsafe { NonNull::new_unchecked(block) };
        // SAFETY: the alignment is one of a layout, and the caller keeps the rounded size within `isize::MAX`.
        let new = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        // SAFETY: (1) the caller passes a live block of this allocator with its layout; (2) and gives it up on success.
        as_raw(unsafe { layout::resize(&self.inner, block, layout, new) })
    }
}
