//! Owns [`Domains`]: three domains configured by one row of the table, with get, set and debug hooks.
//! Leaves what is installed in a domain to `layers.rs`, and the first call to `gate.rs`.

use core::fmt;

use pymem_sync::{Lock, Published};

use crate::backend::{Backends, libc_record};
use crate::debug::{Checks, DebugConfig};
use crate::domain_allocator::DomainAllocator;
use crate::error::{DomainsError, SetAllocatorError};
use crate::fork;
use crate::gate::{Gated as _, gate};
use crate::layers::Layers;
use crate::name::{AllocatorName, UnknownAllocator};
use crate::profile::{Build, Profile};
use crate::shared::{Cells, FOR_POOLS, Shared};
use crate::stats::DomainDescription;
use crate::table::Row;
use malloc_api::Domain;
use malloc_api::immortal;
use malloc_api::{AllocatorRecord, ThreadSafety};

/// Three domains, raw, mem and obj, served as one row of the [table](crate::TABLE) says.
///
/// A `Domains` is a handle: it is copied freely, and what it stands for lives as long as the process, since blocks and
/// records outlive any scope. Several can live side by side, each with its own pools and heaps.
///
/// # Examples
///
/// ```
/// use pymem_domains::{AllocatorName, Domain, Domains, Profile};
/// use malloc_api::Malloc;
///
/// let domains = Domains::new(Profile::NEWEST, Some(AllocatorName::Debug))?;
/// let mem = domains.get(Domain::Mem);
/// let block = mem.malloc(100).expect("100 bytes");
/// // SAFETY: the block is live, of this domain, and not used again.
/// unsafe { mem.free(Some(block)) };
/// # Ok::<(), pymem_domains::DomainsError>(())
/// ```
#[derive(Clone, Copy)]
pub struct Domains {
    shared: &'static Shared,
}

impl Domains {
    /// Domains for `profile`, configured by `name`; `None`, "not set", is the profile's default.
    ///
    /// # Errors
    ///
    /// [`DomainsError::UnknownAllocator`] when the profile rejects the name, [`DomainsError::Unavailable`] when the row
    /// needs an allocator that this build of the crate leaves out.
    pub fn new(profile: Profile, name: Option<AllocatorName>) -> Result<Self, DomainsError> {
        Self::with_debug(profile, name, DebugConfig::new())
    }

    /// [`Domains::new`] with what the debug hooks are to do.
    ///
    /// # Errors
    ///
    /// As [`Domains::new`], and [`DomainsError::Hooks`] when the row has hooks whose options cannot be switched on.
    pub fn with_debug(
        profile: Profile,
        name: Option<AllocatorName>,
        debug: DebugConfig,
    ) -> Result<Self, DomainsError> {
        // SAFETY: 1: any thread may call.
        unsafe { Self::with_threads(profile, name, debug, ThreadSafety::AnyThread) }
    }

    /// [`Domains::with_debug`] for a host whose own lock is held over every call of mem and obj, as Python's GIL is:
    /// pymalloc then takes no lock of its own.
    ///
    /// The other allocators are the same as ever. An interpreter may have several such locks since Python 3.12, one for
    /// each subinterpreter; there this constructor is wrong.
    ///
    /// # Errors
    ///
    /// As [`Domains::with_debug`].
    ///
    /// # Safety
    ///
    /// 1. Every call of mem and obj, through the domains or through a record of theirs, and every call that looks at the
    ///    pools (statistics, block counts, release, the arena allocator), is made under one lock, for as long as the
    ///    process lives. Calls of raw need no lock.
    pub unsafe fn under_lock(
        profile: Profile,
        name: Option<AllocatorName>,
        debug: DebugConfig,
    ) -> Result<Self, DomainsError> {
        // SAFETY: 1: by duty 1, one call at a time.
        unsafe { Self::with_threads(profile, name, debug, ThreadSafety::OneAtATime) }
    }

    /// # Safety
    ///
    /// 1. `threads` is true of every later call.
    unsafe fn with_threads(
        profile: Profile,
        name: Option<AllocatorName>,
        debug: DebugConfig,
        threads: ThreadSafety,
    ) -> Result<Self, DomainsError> {
        let row = Self::row_of(&profile, name)?;
        let libc = immortal::leak(libc_record());
        let cells = immortal::leak(Domain::ALL.map(|_| Published::new(libc)));
        // SAFETY: 1: by duty 1.
        unsafe { Self::build(profile, row, debug, cells, threads) }
    }

    /// The profile's row for `name`; what is not set is the default.
    pub(crate) fn row_of(
        profile: &Profile,
        name: Option<AllocatorName>,
    ) -> Result<&'static Row, DomainsError> {
        let name = name.unwrap_or(AllocatorName::Default);
        let row = profile.row(name);
        Ok(row.map_err(|reason| UnknownAllocator::new(name.as_str().as_bytes(), reason))?)
    }

    /// Domains that publish their records in `cells`, made without the program's global allocator.
    ///
    /// # Safety
    ///
    /// 1. `threads` is true of every later call.
    pub(crate) unsafe fn build(
        profile: Profile,
        row: &'static Row,
        debug: DebugConfig,
        cells: &'static Cells,
        threads: ThreadSafety,
    ) -> Result<Self, DomainsError> {
        let for_pools = immortal::leak(Published::new(immortal::leak(libc_record())));
        let raw = DomainAllocator::new(for_pools);
        // SAFETY: 1: by duty 1.
        let backends = unsafe { Backends::new(raw, profile.build(), threads) };
        let backends = immortal::leak(backends);
        let base = |domain| {
            let backend = row.backend(domain);
            backends.record(backend).ok_or(DomainsError::Unavailable { domain, backend })
        };
        let layers = [
            Layers::new(Domain::Raw, base(Domain::Raw)?),
            Layers::new(Domain::Mem, base(Domain::Mem)?),
            Layers::new(Domain::Obj, base(Domain::Obj)?),
        ];
        let libc = libc_record();
        let default_raw =
            if profile.pydebug() { debug.over(Checks::Hooks, Domain::Raw, libc)? } else { libc };
        let layers = Lock::new(layers);
        let shared = Shared {
            profile,
            row,
            debug,
            threads,
            cells,
            for_pools,
            layers,
            backends,
            default_raw,
        };
        let shared = immortal::leak(shared);
        fork::hold_over_forks(shared);
        let domains = Self { shared };
        if row.debug() {
            domains.setup_debug_hooks()?;
        } else if debug.samples() {
            domains.setup_samplers()?;
        }
        let gates = immortal::leak([
            gate::<Shared, 0>(shared),
            gate::<Shared, 1>(shared),
            gate::<Shared, 2>(shared),
        ]);
        for_pools.store(immortal::leak(gate::<Shared, FOR_POOLS>(shared)));
        for (cell, gate) in cells.iter().zip(gates) {
            cell.store(gate);
        }
        Ok(domains)
    }

    /// The profile whose table applies.
    #[must_use]
    pub fn profile(self) -> Profile {
        self.shared.profile
    }

    /// The row of the table that the domains were made from. A later set does not change it.
    #[must_use]
    pub fn row(self) -> &'static Row {
        self.shared.row
    }

    /// The allocator of a domain: a [`Malloc`](malloc_api::Malloc) that stays valid for ever and follows every later set.
    #[must_use]
    pub fn get(self, domain: Domain) -> DomainAllocator {
        DomainAllocator::new(&self.shared.cells[domain.index()])
    }

    /// The record that serves `domain` now; C's `PyMem_GetAllocator`.
    ///
    /// Whoever calls the record's functions without going through the domain calls [`Domains::start`] first.
    #[must_use]
    pub fn get_allocator(self, domain: Domain) -> AllocatorRecord {
        *self.shared.layers.lock()[domain.index()].top()
    }

    /// Makes `allocator` serve `domain` in place of what does, debug hooks included; C's `PyMem_SetAllocator`.
    ///
    /// To put a wrapper around the current allocator, use [`Domains::wrap_allocator`]; to take wrappers off again, set
    /// the record that they wrap. A record that served the domain before comes back with what it lay on. Returns the
    /// record that served until now.
    ///
    /// # Errors
    ///
    /// Nothing is changed by
    /// - [`SetAllocatorError::AfterFirstAllocation`]: the domain has handed out blocks, and the record is none that is
    ///   known to serve these very blocks;
    /// - [`SetAllocatorError::WrongDomain`]: the record is hooks or a wrapper over another domain's allocator.
    pub fn set_allocator(
        self,
        domain: Domain,
        allocator: AllocatorRecord,
    ) -> Result<AllocatorRecord, SetAllocatorError> {
        let mut layers = self.shared.layers.lock();
        if let Some(owner) = Domain::ALL
            .into_iter()
            .find(|owner| *owner != domain && layers[owner.index()].owns(&allocator))
        {
            return Err(SetAllocatorError::WrongDomain { domain, owner });
        }
        let layers = &mut layers[domain.index()];
        let old = *layers.top();
        layers.replace(allocator)?;
        self.shared.publish(domain, layers);
        Ok(old)
    }

    /// Puts a wrapper around the allocator of `domain`, at any time; returns the wrapped record.
    ///
    /// `wrap` is given the record that serves the domain and returns the record of the wrapper. It runs again if the
    /// domain changed meanwhile.
    ///
    /// # Safety
    ///
    /// 1. The wrapper's blocks are those of the record that it was given: each takes back the blocks of the other.
    pub unsafe fn wrap_allocator(
        self,
        domain: Domain,
        mut wrap: impl FnMut(AllocatorRecord) -> AllocatorRecord,
    ) -> AllocatorRecord {
        loop {
            let inner = self.get_allocator(domain);
            // Not under the lock: `wrap` may allocate from a domain whose gate takes it.
            let wrapper = wrap(inner);
            let layers = &mut self.shared.layers.lock()[domain.index()];
            if layers.wrap(&inner, wrapper) {
                self.shared.publish(domain, layers);
                return inner;
            }
        }
    }

    /// Puts the debug hooks on every domain that does not have them; C's `PyMem_SetupDebugHooks`.
    ///
    /// Hooks under a wrapper count: calling it again changes nothing.
    ///
    /// # Errors
    ///
    /// [`SetAllocatorError::AfterFirstAllocation`] when a domain without hooks has handed out blocks, whose frees the
    /// hooks would report as corrupt; no domain is changed.
    pub fn setup_debug_hooks(self) -> Result<(), SetAllocatorError> {
        let mut layers = self.shared.layers.lock();
        for layers in layers.iter() {
            layers.check_hooks()?;
        }
        for domain in Domain::ALL {
            let layers = &mut layers[domain.index()];
            let shared = self.shared;
            layers.set_hooks(|inner| shared.checks_over(inner, Checks::Hooks, domain))?;
            self.shared.publish(domain, layers);
        }
        Ok(())
    }

    /// Puts guard pages for one block in N on every domain that has nothing over its allocator yet; the rate and the host
    /// are the [`DebugConfig`]'s.
    ///
    /// Rows without debug hooks have them by themselves where [`DebugConfig::samples`]; this is for a domain whose allocator
    /// was set since. What the pools take from raw is not guarded: their own blocks are.
    ///
    /// # Errors
    ///
    /// [`SetAllocatorError::AfterFirstAllocation`] when a domain has handed out blocks, [`SetAllocatorError::Options`] when
    /// the options ask for more than guard pages, or the system has no address space for them. Domains before the one
    /// named have their guard pages then.
    pub fn setup_samplers(self) -> Result<(), SetAllocatorError> {
        let mut layers = self.shared.layers.lock();
        for domain in Domain::ALL {
            let layers = &mut layers[domain.index()];
            let shared = self.shared;
            // A global lock is held over calls of mem and obj, one of its own in each subinterpreter at the most.
            let checks = match (shared.profile.build(), domain) {
                (Build::Gil, Domain::Mem | Domain::Obj) => Checks::SerializedSampler,
                _ => Checks::Sampler,
            };
            layers.set_sampler(|inner| shared.checks_over(inner, checks, domain))?;
        }
        Ok(())
    }

    /// The name of the row whose records serve the three domains now, as CPython finds it.
    ///
    /// The records are compared, not the history: `malloc`, `pymalloc`, `mimalloc`, or their `_debug` form when the
    /// outermost layer of all three is the debug hooks; guard pages alone change no name. `None` with any other record, such
    /// as a wrapper.
    #[must_use]
    pub fn current_name(self) -> Option<AllocatorName> {
        use AllocatorName as N;
        const NAMES: [(AllocatorName, AllocatorName); 3] = [
            (N::Malloc, N::MallocDebug),
            (N::Pymalloc, N::PymallocDebug),
            (N::Mimalloc, N::MimallocDebug),
        ];
        let layers = self.shared.layers.lock();
        let outer = layers.each_ref().map(|layers| Some(layers.under_sampler()));
        let under = layers.each_ref().map(Layers::under_hooks);
        NAMES.into_iter().find_map(|(plain, debug)| {
            let row = self.shared.profile.row(plain).ok()?;
            let wanted = Domain::ALL.map(|domain| self.shared.backends.record(row.backend(domain)));
            if outer.map(Option::<&_>::copied) == wanted {
                Some(plain)
            } else if under.iter().all(Option::is_some) && under.map(Option::<&_>::copied) == wanted
            {
                Some(debug)
            } else {
                None
            }
        })
    }

    /// The default raw allocator, which no set replaces: the C library, under debug hooks in a debug build.
    ///
    /// It is for what must outlive a change of allocators. Its blocks are not the raw domain's.
    #[must_use]
    pub fn default_raw(self) -> AllocatorRecord {
        self.shared.default_raw
    }

    /// What is known of `domain`.
    pub(crate) fn describe_domain(self, domain: Domain) -> DomainDescription {
        let backend = self.shared.row.backend(domain);
        let made_with = self.shared.backends.record(backend);
        let layers = &self.shared.layers.lock()[domain.index()];
        DomainDescription {
            domain,
            backend,
            replaced: made_with != Some(*layers.base()),
            debug_hooks: layers.hooked(),
            wrappers: layers.wrappers(),
            used: layers.used(),
        }
    }

    /// Which threads may call mem and obj.
    pub(crate) fn threads(self) -> ThreadSafety {
        self.shared.threads
    }

    /// The allocators that rows of the table are served by.
    pub(crate) fn backends(self) -> &'static Backends {
        self.shared.backends
    }

    /// Fixes the allocators: from now on every domain counts as having handed out blocks.
    pub fn start(self) {
        for domain in Domain::ALL {
            self.open(domain.index());
        }
    }

    /// Marks domain number `domain` as used, publishes its record and returns it.
    pub(crate) fn open(self, domain: usize) -> &'static AllocatorRecord {
        self.shared.open(domain)
    }

    /// The record that serves domain number `domain`, without marking it.
    pub(crate) fn peek(self, domain: usize) -> &'static AllocatorRecord {
        self.shared.peek(domain)
    }
}

impl fmt::Debug for Domains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Domains")
            .field("profile", &self.shared.profile)
            .field("row", &self.shared.row)
            .field("layers", &self.shared.layers)
            .finish()
    }
}
