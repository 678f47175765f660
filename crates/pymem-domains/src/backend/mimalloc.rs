//! Owns the mimalloc heaps of one set of domains.

use mimalloc_heaps::MiMalloc;

use crate::record::AllocatorRecord;

static PLAIN: MiMalloc = MiMalloc;

/// mimalloc for each domain.
#[derive(Debug)]
pub(crate) struct Heaps;

impl Heaps {
    pub(crate) const fn new() -> Self {
        Self
    }

    pub(crate) const fn raw(&'static self) -> Option<AllocatorRecord> {
        Some(AllocatorRecord::new(&PLAIN))
    }

    pub(crate) const fn mem(&'static self) -> Option<AllocatorRecord> {
        Some(AllocatorRecord::new(&PLAIN))
    }

    pub(crate) const fn object(&'static self) -> Option<AllocatorRecord> {
        Some(AllocatorRecord::new(&PLAIN))
    }
}
