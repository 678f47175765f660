//! Owns the allocator that serves a domain until its first use: the gate marks the domain as used, so that the base
//! allocator can no longer be replaced, publishes the real record and passes the call on. Later calls go straight there.

use core::ptr::NonNull;

use malloc_api::{AllocatorRecord, Malloc};

/// What stands behind a gate: it can say which record really serves a domain.
pub(crate) trait Gated: Sync + 'static {
    /// Marks domain number `domain` as used, publishes its record and returns it.
    fn open(&self, domain: usize) -> &'static AllocatorRecord;
    /// The record that serves domain number `domain`, without marking it.
    fn peek(&self, domain: usize) -> &'static AllocatorRecord;
}

/// The gate of one domain.
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
