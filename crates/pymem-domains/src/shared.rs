//! Owns [`Shared`]: what the copies of one `Domains` stand for, how it is made, and what its calls find.
//! Leaves what can be asked of it to `domains.rs`.

use malloc_api::{AllocatorRecord, Domain, ThreadSafety, immortal};
use pymem_sync::{HeldOverFork, Lock, Published};

use crate::backend::malloc::libc_record;
use crate::debug::{Checks, DebugConfig};
use crate::domain_allocator::{Gate, Gated};
use crate::error::{DomainsError, SetAllocatorError};
use crate::layers::Layers;
use crate::profile::{Build, Profile};
use crate::raw_below::RawBelow;
use crate::table::{Backend, Backends, Row};

/// The number of the gate through which the pools reach raw: below raw's debug hooks, since blocks of the pools have hooks of
/// their own.
const FOR_POOLS: usize = Domain::ALL.len();

/// Where the calls of the three domains find their records.
pub(crate) type Cells = [Published<AllocatorRecord>; 3];

/// What the copies of one `Domains` stand for.
pub(crate) struct Shared {
    pub(crate) profile: Profile,
    pub(crate) row: &'static Row,
    pub(crate) cells: &'static Cells,
    pub(crate) layers: Lock<[Layers; 3]>,
    pub(crate) backends: &'static Backends,
    pub(crate) default_raw: AllocatorRecord,
    debug: DebugConfig,
    /// Where the pools find raw.
    pub(crate) raw_below: RawBelow,
}

impl Shared {
    /// Domains that publish their records in `cells`, made without the program's global allocator. Whoever makes them
    /// registers their locks for forks.
    ///
    /// # Safety
    ///
    /// 1. `threads` is true of every later call, until the pools are shared.
    pub(crate) unsafe fn make(
        profile: Profile,
        row: &'static Row,
        debug: DebugConfig,
        cells: &'static Cells,
        threads: ThreadSafety,
    ) -> Result<&'static Self, DomainsError> {
        let raw_below = RawBelow::new(libc_record());
        // SAFETY: 1: by duty 1.
        let backends = immortal::leak(unsafe { Backends::new(raw_below, profile, threads) });
        let layers = |domain| {
            let backend = row.backend(domain);
            let base = backend.of(backends).record(domain);
            let base = base.ok_or(DomainsError::Unavailable { domain, backend })?;
            Ok::<_, DomainsError>(Layers::new(domain, base))
        };
        let layers = Lock::new([layers(Domain::Raw)?, layers(Domain::Mem)?, layers(Domain::Obj)?]);
        let libc = libc_record();
        let default_raw = if profile.pydebug() {
            let hooks = debug.over(Checks::Hooks, Domain::Raw, libc);
            hooks.map_err(|error| SetAllocatorError::Options { domain: Domain::Raw, error })?
        } else {
            libc
        };
        let shared = immortal::leak(Self {
            profile,
            row,
            debug,
            cells,
            raw_below,
            layers,
            backends,
            default_raw,
        });
        for backend in shared.used() {
            backend.of(backends).prepare();
        }
        if row.debug() {
            shared.set_hooks()?;
        } else if debug.samples() {
            shared.set_samplers()?;
        }
        // Not rare: every process makes its first call through one.
        let gate = |domain| {
            immortal::leak(AllocatorRecord::new(immortal::leak(Gate::new(shared, domain))))
        };
        raw_below.store(gate(FOR_POOLS));
        for (domain, cell) in cells.iter().enumerate() {
            cell.store(gate(domain));
        }
        Ok(shared)
    }

    /// The record of `backend` for `domain`; `None` when it is not compiled in.
    pub(crate) fn record(&self, backend: Backend, domain: Domain) -> Option<AllocatorRecord> {
        backend.of(self.backends).record(domain)
    }

    /// The allocators of the row, each once.
    pub(crate) fn used(&self) -> impl Iterator<Item = Backend> + use<> {
        let row = self.row;
        Backend::ALL.into_iter().filter(|backend| row.uses(*backend))
    }

    /// Puts the debug hooks on every domain that does not have them.
    pub(crate) fn set_hooks(&self) -> Result<(), SetAllocatorError> {
        let mut layers = self.layers.lock();
        for layers in layers.iter() {
            layers.check_hooks()?;
        }
        for domain in Domain::ALL {
            let layers = &mut layers[domain.index()];
            layers.set_hooks(|inner| self.checks_over(inner, Checks::Hooks, domain))?;
            self.publish(domain, layers);
        }
        Ok(())
    }

    /// Puts guard pages on every domain that has nothing over its allocator yet.
    pub(crate) fn set_samplers(&self) -> Result<(), SetAllocatorError> {
        let mut layers = self.layers.lock();
        for domain in Domain::ALL {
            // With the GIL, calls of mem and obj overlap only where subinterpreters have a GIL of their own.
            let checks = match (self.profile.build(), domain) {
                (Build::Gil, Domain::Mem | Domain::Obj) => Checks::SerializedSampler,
                (Build::Gil, Domain::Raw) | (Build::FreeThreaded, _) => Checks::Sampler,
            };
            let layers = &mut layers[domain.index()];
            layers.set_sampler(|inner| self.checks_over(inner, checks, domain))?;
        }
        Ok(())
    }

    /// `checks` of `domain` over `inner`; an allocator of the table makes those over its own record.
    fn checks_over(
        &self,
        inner: AllocatorRecord,
        checks: Checks,
        domain: Domain,
    ) -> Result<AllocatorRecord, SetAllocatorError> {
        let known = Backend::ALL.map(|backend| backend.of(self.backends));
        let made = match known.into_iter().find(|known| known.record(domain) == Some(inner)) {
            Some(known) => known.checks_over(inner, &self.debug, checks, domain),
            None => self.debug.over(checks, domain, inner),
        };
        made.map_err(|error| SetAllocatorError::Options { domain, error })
    }

    /// Lets calls see the domain's top record; an unused domain keeps its gate.
    pub(crate) fn publish(&self, domain: Domain, layers: &Layers) {
        if layers.used() {
            self.cells[domain.index()].store(layers.top());
            if domain == Domain::Raw {
                self.raw_below.store(layers.for_allocators());
            }
        }
    }
}

// The locks of the allocators come first: an allocator that holds its lock may call raw's gate, which takes that of the layers.
impl HeldOverFork for Shared {
    fn hold(&self) {
        for backend in Backend::ALL {
            backend.of(self.backends).lock_for_fork();
        }
        self.layers.raw().lock();
    }

    unsafe fn release(&self) {
        // SAFETY: 1: `hold` took it (duty 1).
        unsafe { self.layers.raw().unlock() };
        for backend in Backend::ALL {
            // SAFETY: 1: as above.
            unsafe { backend.of(self.backends).unlock_after_fork() };
        }
    }
}

impl Gated for Shared {
    fn open(&self, gate: usize) -> &'static AllocatorRecord {
        let domain = *Domain::ALL.get(gate).unwrap_or(&Domain::Raw);
        let layers = &mut self.layers.lock()[domain.index()];
        layers.mark_used();
        self.publish(domain, layers);
        if gate == FOR_POOLS { self.raw_below.record() } else { layers.top() }
    }

    fn peek(&self, gate: usize) -> &'static AllocatorRecord {
        let layers = self.layers.lock();
        match Domain::ALL.get(gate) {
            Some(domain) => layers[domain.index()].top(),
            None if layers[Domain::Raw.index()].used() => self.raw_below.record(),
            None => layers[Domain::Raw.index()].for_allocators(),
        }
    }
}
