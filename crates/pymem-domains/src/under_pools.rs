//! Owns what [`Domains`] tells whoever works under the pools of mem and obj: how they reach raw, and what they pass on to it.

use malloc_api::Domain;

use crate::domain_allocator::DomainAllocator;
use crate::domains::Domains;
use crate::raw_below::RawWatch;

impl Domains {
    /// Raw as an allocator of other domains takes memory from it: without the debug hooks and guard pages of raw, which would take a block
    /// that such an allocator hands on for one of raw's.
    #[must_use]
    pub fn raw_for_allocators(self) -> DomainAllocator {
        DomainAllocator::new(self.shared().raw_below.raw)
    }

    /// Has the pools of mem and obj watched from below, at any time; `false` where they are already.
    ///
    /// The wrapper around raw sees what the pools pass on, and no other call of raw; large blocks in the span beside the pools are told when
    /// they end. `watch.wrap` is given the record that serves the pools, again whenever that changes.
    ///
    /// # Safety
    ///
    /// 1. The wrapper's blocks are those of the record that it was given: each takes back the blocks of the other.
    /// 2. Neither function calls a method of these domains, nor allocates from one.
    pub unsafe fn watch_raw_below(self, watch: RawWatch) -> bool {
        let layers = self.shared().layers.lock();
        let is_first = self.shared().raw_below.watch.set(watch).is_ok();
        self.shared().publish(Domain::Raw, &layers[Domain::Raw.index()]);
        is_first
    }
}
