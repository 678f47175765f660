//! Owns the pools of one set of domains.

use pymalloc_core::LockedPymalloc;
use pymalloc_core::MmapArenas;

use crate::domains::DomainAllocator;
use crate::record::AllocatorRecord;

/// pymalloc for the mem and obj domains, which share it.
#[derive(Debug)]
pub(crate) struct Pools(LockedPymalloc<DomainAllocator, MmapArenas>);

impl Pools {
    pub(crate) const fn new(raw: DomainAllocator) -> Self {
        Self(LockedPymalloc::new(raw))
    }

    pub(crate) const fn record(&'static self) -> Option<AllocatorRecord> {
        Some(AllocatorRecord::new(&self.0))
    }
}
