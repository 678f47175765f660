//! Owns [`DomainAllocator`], the handle by which one domain is called, and the gate that serves the domain until its first
//! use. Leaves which record serves the domain to `shared.rs`.

use core::fmt;
use core::ptr::NonNull;

use malloc_api::{AllocatorRecord, Forward, Malloc};
use pymem_sync::Published;

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

// SAFETY: 1: whatever record a call loads takes the domain's blocks: a base never changes after the first block, and
// wrappers serve the same blocks; 2: copies share the cell; 3: an atomic load.
unsafe impl Forward for DomainAllocator {
    type Target = AllocatorRecord;

    #[inline]
    fn target(&self) -> &AllocatorRecord {
        self.cell.load()
    }
}

/// What stands behind a gate: it can say which record really serves a domain.
pub(crate) trait Gated: Sync + 'static {
    /// Marks domain number `domain` as used, publishes its record and returns it.
    fn open(&self, domain: usize) -> &'static AllocatorRecord;
    /// The record that serves domain number `domain`, without marking it.
    fn peek(&self, domain: usize) -> &'static AllocatorRecord;
}

/// The gate of one domain: the first call marks the domain as used, so that the base allocator can no longer be replaced,
/// and publishes the real record. Later calls go straight there.
pub(crate) struct Gate<G: Gated> {
    gated: &'static G,
    domain: usize,
}

impl<G: Gated> Gate<G> {
    pub(crate) const fn new(gated: &'static G, domain: usize) -> Self {
        Self { gated, domain }
    }
}

// SAFETY: every method is the same method of the domain's record, which keeps promises 1-4. 5: gates of one domain share
// the record, since a used domain keeps its blocks.
unsafe impl<G: Gated> Malloc for Gate<G> {
    #[cold]
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        self.gated.open(self.domain).malloc(size)
    }

    #[cold]
    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        self.gated.open(self.domain).calloc(nelem, elsize)
    }

    #[cold]
    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        // SAFETY: the caller's duties 1 and 2; a live block shows that the domain is used, so the record is the one that
        // made the block.
        unsafe { self.gated.open(self.domain).realloc(ptr, new_size) }
    }

    #[cold]
    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        // SAFETY: as in `realloc`.
        unsafe { self.gated.peek(self.domain).free(ptr) }
    }
}
