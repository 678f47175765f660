//! Owns [`RawBelow`]: raw as the pools of mem and obj take memory from it, and who watches that. Leaves which record that is to
//! `layers.rs`.

use core::ptr::NonNull;
use std::sync::OnceLock;

use malloc_api::{AllocatorRecord, Forward, immortal};
use pymem_sync::Published;

/// How the pools reach raw: past raw's debug hooks and guard pages, which would take a block that the pools hand on for one of raw's,
/// and through who watches them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawBelow {
    /// Raw with nobody who watches.
    pub(crate) raw: &'static Published<AllocatorRecord>,
    watched: &'static Published<AllocatorRecord>,
    pub(crate) watch: &'static OnceLock<RawWatch>,
}

impl RawBelow {
    /// `record`, until another one is [stored](Self::store).
    pub(crate) fn new(record: AllocatorRecord) -> Self {
        let record = immortal::leak(record);
        let cell = || immortal::leak(Published::new(record));
        Self { raw: cell(), watched: cell(), watch: immortal::leak(OnceLock::new()) }
    }

    /// The record that the pools call.
    pub(crate) fn record(&self) -> &'static AllocatorRecord {
        self.watched.load()
    }

    /// Goes on with `record`.
    pub(crate) fn store(&self, record: &'static AllocatorRecord) {
        let watched = self.watch.get().map(|watch| immortal::leak((watch.wrap)(*record)));
        self.watched.store(watched.unwrap_or(record));
        self.raw.store(record);
    }
}

// SAFETY: 1: as of `DomainAllocator`, and what watches serves the same blocks; 2: copies share the cell; 3: an atomic load.
unsafe impl Forward for RawBelow {
    type Target = AllocatorRecord;

    #[inline]
    fn target(&self) -> &AllocatorRecord {
        self.record()
    }
}

/// Who works under the pools.
#[derive(Clone, Copy, Debug)]
pub struct RawWatch {
    /// Makes a wrapper around the record that it is given.
    pub wrap: fn(AllocatorRecord) -> AllocatorRecord,
    /// Is told of a large block that ends, which lay in the span beside the pools.
    pub freed: fn(NonNull<u8>),
}
