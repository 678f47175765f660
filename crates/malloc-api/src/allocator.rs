//! Owns `AllocatorAdapter`: any `Malloc` as the allocator of a collection. Leaves layouts to `layout.rs`.
//!
//! `allocator_api2` 0.2 and 0.4 and the standard library have the same trait under three identities; one macro writes the impls.

use core::alloc::Layout;
use core::ptr::NonNull;

use crate::{Malloc, layout};

/// Makes any [`Malloc`] an `Allocator` of `allocator_api2`, for collections.
///
/// Feature `api2` implements the trait of version 0.4, feature `api2-02` that of version 0.2, which hashbrown takes, and feature `nightly`
/// that of the standard library, with a nightly compiler.
/// Zero-size layouts get a dangling pointer without a call. Alignments above [`MIN_ALIGN`](crate::MIN_ALIGN) cost
/// that many bytes more per block. `grow` and `shrink` use `realloc` and may change the alignment;
/// `allocate_zeroed` goes through `calloc`. Blocks are exactly as long as their layout.
///
/// Lend an allocator to many collections as `AllocatorAdapter::new(&allocator)`, which is `Copy`.
///
/// # Examples
///
/// ```
/// use allocator_api2::vec::Vec;
/// use malloc_api::{AllocatorAdapter, LibcMalloc};
///
/// let mut squares = Vec::new_in(AllocatorAdapter::new(LibcMalloc));
/// squares.extend((0..10).map(|n| n * n));
/// assert_eq!(squares[9], 81);
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct AllocatorAdapter<A> {
    inner: A,
}

impl<A> AllocatorAdapter<A> {
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

impl<A: Malloc> AllocatorAdapter<A> {
    fn block(&self, layout: Layout) -> Option<NonNull<[u8]>> {
        with_length(layout::allocate(&self.inner, layout), layout)
    }

    fn zeroed_block(&self, layout: Layout) -> Option<NonNull<[u8]>> {
        with_length(layout::allocate_zeroed(&self.inner, layout), layout)
    }

    /// # Safety
    ///
    /// 1. `ptr` is a live block of this allocator for `old`.
    /// 2. After a successful call it is not used.
    unsafe fn resized_block(
        &self,
        ptr: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Option<NonNull<[u8]>> {
        // SAFETY: (1) and (2) are the caller's.
        with_length(unsafe { layout::resize(&self.inner, ptr, old, new) }, new)
    }

    /// # Safety
    ///
    /// 1. `ptr` is a live block of this allocator for `old`, and `new` is at least as long.
    /// 2. After a successful call it is not used.
    unsafe fn grown_zeroed_block(
        &self,
        ptr: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Option<NonNull<[u8]>> {
        if old.size() == 0 {
            return self.zeroed_block(new);
        }
        // SAFETY: (1) and (2) are the caller's.
        let block = unsafe { self.resized_block(ptr, old, new) }?;
        // SAFETY: `old.size() <= new.size()`, the length of the block (caller's 1).
        let tail = unsafe { block.cast::<u8>().add(old.size()) };
        // SAFETY: the tail ends where the block ends.
        unsafe { tail.write_bytes(0, new.size() - old.size()) };
        Some(block)
    }
}

fn with_length(block: Option<NonNull<u8>>, layout: Layout) -> Option<NonNull<[u8]>> {
    Some(NonNull::slice_from_raw_parts(block?, layout.size()))
}

macro_rules! implement_allocator {
    ($api:ident, $when:meta, $feature:literal) => {
        #[cfg($when)]
        #[cfg_attr(docsrs, doc(cfg(feature = $feature)))]
        // SAFETY: blocks are those of `layout.rs`, valid for their layout by promises 1-3 of `Malloc`; they outlive
        // moves of the allocator and a clone serves them too (5).
        unsafe impl<A: Malloc> $api::alloc::Allocator for AllocatorAdapter<A> {
            #[inline]
            fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, $api::alloc::AllocError> {
                self.block(layout).ok_or($api::alloc::AllocError)
            }

            #[inline]
            fn allocate_zeroed(
                &self,
                layout: Layout,
            ) -> Result<NonNull<[u8]>, $api::alloc::AllocError> {
                self.zeroed_block(layout).ok_or($api::alloc::AllocError)
            }

            #[inline]
            unsafe fn deallocate(&self, ptr: NonNull<u8>, layout: Layout) {
                // SAFETY: (1) the caller passes a live block with a layout that fits it; (2) and gives it up.
                unsafe { layout::deallocate(&self.inner, ptr, layout) }
            }

            #[inline]
            unsafe fn grow(
                &self,
                ptr: NonNull<u8>,
                old: Layout,
                new: Layout,
            ) -> Result<NonNull<[u8]>, $api::alloc::AllocError> {
                // SAFETY: (1) the caller passes a live block with its layout; (2) and gives it up on success.
                unsafe { self.resized_block(ptr, old, new) }.ok_or($api::alloc::AllocError)
            }

            #[inline]
            unsafe fn grow_zeroed(
                &self,
                ptr: NonNull<u8>,
                old: Layout,
                new: Layout,
            ) -> Result<NonNull<[u8]>, $api::alloc::AllocError> {
                // SAFETY: (1) the caller passes a live block with its layout, and a longer one; (2) and gives it up
                // on success.
                unsafe { self.grown_zeroed_block(ptr, old, new) }.ok_or($api::alloc::AllocError)
            }

            #[inline]
            unsafe fn shrink(
                &self,
                ptr: NonNull<u8>,
                old: Layout,
                new: Layout,
            ) -> Result<NonNull<[u8]>, $api::alloc::AllocError> {
                // SAFETY: (1) the caller passes a live block with its layout; (2) and gives it up on success.
                unsafe { self.resized_block(ptr, old, new) }.ok_or($api::alloc::AllocError)
            }
        }
    };
}

implement_allocator!(allocator_api2, feature = "api2", "api2");
implement_allocator!(allocator_api2_02, feature = "api2-02", "api2-02");
implement_allocator!(core, malloc_api_nightly, "nightly");
