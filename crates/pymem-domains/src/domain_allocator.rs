//! Owns [`DomainAllocator`]: the handle by which one domain is called.
//! Leaves which record serves the domain to `shared.rs`.

use core::fmt;

use malloc_api::{AllocatorRecord, Forward};
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
