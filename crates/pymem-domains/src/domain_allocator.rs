//! Owns [`DomainAllocator`]: the handle by which one domain is called.
//! Leaves which record serves the domain to `domains.rs`.

use core::fmt;
use core::ptr::NonNull;

use malloc_api::Malloc;
use pymem_sync::Published;

use malloc_api::AllocatorRecord;

/// The allocator of one domain of a [`Domains`](crate::Domains).
///
/// A handle of one word, valid for ever. A call loads the domain's record by one atomic load and calls it.
#[derive(Clone, Copy)]
pub struct DomainAllocator {
    cell: &'static Published<AllocatorRecord>,
}

impl DomainAllocator {
    /// The domain whose record `cell` publishes.
    pub(crate) const fn new(cell: &'static Published<AllocatorRecord>) -> Self {
        Self { cell }
    }
}

impl fmt::Debug for DomainAllocator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DomainAllocator").field(self.cell.load()).finish()
    }
}

// SAFETY: every method is the same method of the domain's record, which keeps promises 1-4. Whatever record a call
// loads takes the domain's blocks: a base never changes after the first block, and wrappers serve the same blocks.
// 5: copies share the domain.
unsafe impl Malloc for DomainAllocator {
    #[inline]
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        self.cell.load().malloc(size)
    }

    #[inline]
    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        self.cell.load().calloc(nelem, elsize)
    }

    #[inline]
    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        // SAFETY: the caller's duties 1 and 2 are those of the record.
        unsafe { self.cell.load().realloc(ptr, new_size) }
    }

    #[inline]
    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        // SAFETY: the caller's duties 1 and 2 are those of the record.
        unsafe { self.cell.load().free(ptr) }
    }
}
