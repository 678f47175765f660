//! Stands where `mimalloc.rs` does in a build without mimalloc.

use crate::record::AllocatorRecord;

/// No heaps.
#[derive(Debug)]
pub(crate) struct Heaps;

impl Heaps {
    pub(crate) const fn new() -> Self {
        Self
    }

    pub(crate) const fn raw(&'static self) -> Option<AllocatorRecord> {
        None
    }

    pub(crate) const fn mem(&'static self) -> Option<AllocatorRecord> {
        None
    }

    pub(crate) const fn object(&'static self) -> Option<AllocatorRecord> {
        None
    }
}
