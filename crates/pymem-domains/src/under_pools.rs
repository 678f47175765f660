//! Owns what [`Domains`] tells whoever works under the pools of mem and obj: how they reach raw, and which blocks they pass on to it.

use core::ptr::NonNull;

use malloc_api::Domain;

use crate::domain_allocator::DomainAllocator;
use crate::domains::Domains;
use crate::raw_below::WatchRaw;

impl Domains {
    /// Raw as an allocator of other domains takes memory from it: without the debug hooks and guard pages of raw, which would take a block
    /// that such an allocator hands on for one of raw's.
    #[must_use]
    pub fn raw_for_allocators(self) -> DomainAllocator {
        DomainAllocator::new(self.shared().raw_below.raw)
    }

    /// Puts a wrapper around raw as the pools of mem and obj take memory from it, at any time; `false` where there is one already.
    ///
    /// It sees what the pools [pass on](Self::is_passed_on), and no other call of raw. `watch` is given the record that serves the pools,
    /// again whenever that changes.
    ///
    /// # Safety
    ///
    /// 1. The wrapper's blocks are those of the record that it was given: each takes back the blocks of the other.
    /// 2. `watch` calls no method of these domains, and allocates from none.
    pub unsafe fn watch_raw_below(self, watch: WatchRaw) -> bool {
        let layers = self.shared().layers.lock();
        let is_first = self.shared().raw_below.watch.set(watch).is_ok();
        self.shared().publish(Domain::Raw, &layers[Domain::Raw.index()]);
        is_first
    }

    /// Whether the free of the live block of mem or obj at `block` is passed on to raw: it lies neither in a pool nor in the span of large
    /// blocks beside them.
    #[must_use]
    pub fn is_passed_on(self, block: NonNull<u8>) -> bool {
        let backend = self.row().backend(Domain::Obj);
        backend.of(self.shared().backends).passes_on(block)
    }
}
