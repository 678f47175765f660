//! Owns the allocators that serve one set of domains: their instances and their records.

use malloc_api::LibcMalloc;

use crate::domains::DomainAllocator;
use crate::record::AllocatorRecord;
use crate::table::Backend;

static LIBC: LibcMalloc = LibcMalloc;

/// The allocators of one set of domains.
#[derive(Debug)]
pub(crate) struct Backends;

impl Backends {
    pub(crate) const fn new(_raw: DomainAllocator) -> Self {
        Self
    }

    /// The record of `backend`; `None` when it is not compiled in.
    pub(crate) fn record(&self, backend: Backend) -> Option<AllocatorRecord> {
        match backend {
            Backend::Malloc => Some(AllocatorRecord::new(&LIBC)),
            _ => None,
        }
    }
}
