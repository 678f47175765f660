//! Owns [`Shared`]: what the copies of one `Domains` stand for, and which of its locks are held over a fork.
//! Leaves what its users do with it to `domains.rs`.

use pymem_sync::{Lock, Published};

use crate::backend::Backends;
use crate::debug::{Checks, DebugConfig};
use crate::error::SetAllocatorError;
use crate::fork::HeldOverFork;
use crate::gate::Gated;
use crate::layers::Layers;
use crate::profile::Profile;
use crate::table::Row;
use malloc_api::Domain;
use malloc_api::{AllocatorRecord, ThreadSafety};

/// The number of the gate before raw by which the pools come: past raw's debug hooks, since their blocks have their own.
pub(crate) const FOR_POOLS: usize = Domain::ALL.len();

/// Where the calls of the three domains find their records.
pub(crate) type Cells = [Published<AllocatorRecord>; 3];

/// What the copies of one `Domains` stand for.
pub(crate) struct Shared {
    pub(crate) profile: Profile,
    pub(crate) row: &'static Row,
    pub(crate) debug: DebugConfig,
    pub(crate) threads: ThreadSafety,
    pub(crate) cells: &'static Cells,
    /// Where the pools find raw.
    pub(crate) for_pools: &'static Published<AllocatorRecord>,
    pub(crate) layers: Lock<[Layers; 3]>,
    pub(crate) backends: &'static Backends,
    pub(crate) default_raw: AllocatorRecord,
}

impl Shared {
    /// `checks` of `domain` over `inner`.
    pub(crate) fn checks_over(
        &self,
        inner: AllocatorRecord,
        checks: Checks,
        domain: Domain,
    ) -> Result<AllocatorRecord, SetAllocatorError> {
        self.backends.checks_over(inner, &self.debug, checks, domain)
    }

    /// Lets calls see the domain's top record; an unused domain keeps its gate.
    pub(crate) fn publish(&self, domain: Domain, layers: &Layers) {
        if layers.used() {
            self.cells[domain.index()].store(layers.top());
            if domain == Domain::Raw {
                self.for_pools.store(layers.for_allocators());
            }
        }
    }
}

// The pools come first: their calls of raw reach its gate, which takes the lock of the layers.
impl HeldOverFork for Shared {
    fn lock(&self) {
        self.backends.pools.lock_for_fork();
        self.layers.raw().lock();
    }

    unsafe fn unlock(&self) {
        // SAFETY: 1: `lock` took it (duty 1).
        unsafe { self.layers.raw().unlock() };
        // SAFETY: 1: as above.
        unsafe { self.backends.pools.unlock_after_fork() };
    }
}

impl Gated for Shared {
    fn open(&self, domain: usize) -> &'static AllocatorRecord {
        let mut layers = self.layers.lock();
        if domain == FOR_POOLS {
            let raw = &mut layers[Domain::Raw.index()];
            raw.mark_used();
            self.for_pools.store(raw.for_allocators());
            return raw.for_allocators();
        }
        let layers = &mut layers[domain];
        layers.mark_used();
        self.cells[domain].store(layers.top());
        layers.top()
    }

    fn peek(&self, domain: usize) -> &'static AllocatorRecord {
        let layers = self.layers.lock();
        match domain {
            FOR_POOLS => layers[Domain::Raw.index()].for_allocators(),
            _ => layers[domain].top(),
        }
    }
}
