//! Owns the pools without a lock of their own, for callers that hold one over every call.

use core::ptr::NonNull;

use malloc_api::Malloc;
use pymalloc_core::{LocalPymalloc, MmapArenas};

use crate::domain_allocator::DomainAllocator;

/// Pools whose calls never overlap, because of a lock that their callers hold.
#[derive(Debug)]
pub(crate) struct SerializedPymalloc(LocalPymalloc<DomainAllocator, MmapArenas>);

// SAFETY: whoever makes one promises that at most one thread at a time is in a call (duty 1 of `new`), and that each
// call happens after the one before it; so a shared reference is used as if it moved from thread to thread, which
// `LocalPymalloc: Send` allows.
unsafe impl Sync for SerializedPymalloc {}

impl SerializedPymalloc {
    /// Pools that send what is not for them to `raw`.
    ///
    /// # Safety
    ///
    /// 1. Calls of the value's methods, from whatever threads, are made under one lock.
    pub(crate) const unsafe fn new(raw: DomainAllocator) -> Self {
        Self(LocalPymalloc::new(raw))
    }
}

impl core::ops::Deref for SerializedPymalloc {
    type Target = LocalPymalloc<DomainAllocator, MmapArenas>;

    #[inline(always)]
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

// SAFETY: every promise is that of the pools, whose methods these are.
unsafe impl Malloc for SerializedPymalloc {
    #[inline]
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        self.0.malloc(size)
    }

    #[inline]
    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        self.0.calloc(nelem, elsize)
    }

    #[inline]
    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        // SAFETY: the caller's duties 1 and 2 are the same.
        unsafe { self.0.realloc(ptr, new_size) }
    }

    #[inline]
    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        // SAFETY: the caller's duties 1 and 2 are the same.
        unsafe { self.0.free(ptr) }
    }
}
