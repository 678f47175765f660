//! Stands where `mimalloc.rs` does in a build without mimalloc.

use crate::profile::Build;
use crate::stats::HeapStats;
use malloc_api::AllocatorRecord;
use malloc_api::ReleaseLevel;

/// No heaps.
#[derive(Debug)]
pub(crate) struct Heaps;

impl Heaps {
    pub(crate) const fn new(_build: Build) -> Self {
        Self
    }

    pub(crate) const fn raw(&self) -> Option<AllocatorRecord> {
        None
    }

    pub(crate) const fn mem(&self) -> Option<AllocatorRecord> {
        None
    }

    pub(crate) const fn object(&self) -> Option<AllocatorRecord> {
        None
    }

    pub(crate) fn release(&self, _level: ReleaseLevel) {}

    /// # Safety
    ///
    /// None; as for the heaps of a build that has them.
    pub(crate) const unsafe fn stats_of_lone_thread(&self) -> Option<HeapStats> {
        None
    }

    pub(crate) const fn version(&self) -> Option<String> {
        None
    }
}
