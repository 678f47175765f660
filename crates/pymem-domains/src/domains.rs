//! Owns [`Domains`]: three domains configured by one row of the table, and all that can be asked of them.
//! Leaves how they are made and called to `shared.rs`, and what is installed in a domain to `layers.rs`.

use core::fmt;

use malloc_api::{AllocatorRecord, Domain, ReleaseLevel, ThreadSafety, immortal};
#[cfg(feature = "mimalloc")]
use mimalloc_heaps::{HeapError, World};
#[cfg(feature = "pymalloc")]
use pymalloc_core::{ArenaAllocator, can_be_shared};
use pymem_sync::{ForkLock, Published, Rank, hold_over_forks};

use crate::backend::malloc::libc_record;
#[cfg(feature = "pymalloc")]
use crate::backend::pymalloc::PoolStats;
use crate::debug::DebugConfig;
use crate::domain_allocator::{DomainAllocator, Gated as _};
use crate::error::{DomainsError, SetAllocatorError};
use crate::name::UnknownAllocator;
use crate::process;
use crate::profile::Profile;
use crate::shared::Shared;
use crate::stats::{Description, DomainDescription, Stats};
use crate::table::{AllocatorName, Backend, Row};

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
    /// pymalloc then takes no lock of its own, until the host says that it has more than one ([`share`](Self::share)).
    ///
    /// The other allocators are the same as ever. An interpreter may have several such locks since Python 3.12, one for
    /// each subinterpreter. Where the pools could not be shared while another thread is in a call, they take a lock from the start.
    ///
    /// # Errors
    ///
    /// As [`Domains::with_debug`].
    ///
    /// # Safety
    ///
    /// 1. Every call of mem and obj, through the domains or through a record of theirs, and every call that looks at the
    ///    pools (statistics, block counts, release, the arena allocator), is made under one lock, until [`share`](Self::share)
    ///    has returned. Calls of raw need no lock.
    pub unsafe fn under_lock(
        profile: Profile,
        name: Option<AllocatorName>,
        debug: DebugConfig,
    ) -> Result<Self, DomainsError> {
        let threads = one_at_a_time();
        // SAFETY: 1: by duty 1, one call at a time until they are shared.
        unsafe { Self::with_threads(profile, name, debug, threads) }
    }

    /// Lets any thread call mem and obj from now on, for good: before the host of [`under_lock`](Self::under_lock) has a second lock.
    ///
    /// Any thread may call this, with the lock or without, but not in the middle of a call of mem or obj. A call of another thread is
    /// waited for. Does nothing where any thread may call anyway.
    pub fn share(self) {
        self.shared.backends.pools.share();
    }

    /// [`get_allocator`](Self::get_allocator) for a host of [`under_lock`](Self::under_lock) that never has a second lock: the pools' own
    /// record has shorter calls then.
    ///
    /// # Safety
    ///
    /// 1. [`share`](Self::share) is never called.
    #[must_use]
    pub unsafe fn get_allocator_under_one_lock(self, domain: Domain) -> AllocatorRecord {
        let record = self.get_allocator(domain);
        // SAFETY: 1: by duty 1.
        match unsafe { self.shared.backends.pools.unshared() } {
            Some([pools, unshared]) if pools == record => unshared,
            _ => record,
        }
    }

    /// Which threads may call mem and obj now; raw any thread may call.
    #[must_use]
    pub fn threads(self) -> ThreadSafety {
        self.shared.backends.pools.threads()
    }

    /// # Safety
    ///
    /// 1. `threads` is true of every later call, until the pools are shared.
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
        let shared = unsafe { Shared::make(profile, row, debug, cells, threads) }?;
        // Without memory for the handlers, forks go unguarded.
        let _ = hold_over_forks(immortal::leak(ForkLock::new(Rank::Domains, shared)));
        Ok(Self { shared })
    }

    /// The domains that `shared` stands for.
    pub(crate) const fn of(shared: &'static Shared) -> Self {
        Self { shared }
    }

    /// The profile's row for `name`; what is not set is the default.
    pub(crate) fn row_of(
        profile: &Profile,
        name: Option<AllocatorName>,
    ) -> Result<&'static Row, DomainsError> {
        let name = name.unwrap_or(AllocatorName::Default);
        let row = name.row(profile);
        Ok(row.map_err(|reason| UnknownAllocator::new(name.as_str().as_bytes(), reason))?)
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

    pub(crate) const fn shared(self) -> &'static Shared {
        self.shared
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
        self.shared.set_hooks()
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
        self.shared.set_samplers()
    }

    /// The name of the row whose records serve the three domains now, as CPython finds it.
    ///
    /// The records are compared, not the history: `malloc`, `pymalloc`, `mimalloc`, or their `_debug` form when the
    /// outermost layer of all three is the debug hooks; guard pages alone change no name. `None` with any other record, such
    /// as a wrapper.
    #[must_use]
    pub fn current_name(self) -> Option<AllocatorName> {
        let layers = self.shared.layers.lock();
        let outer = layers.each_ref().map(|layers| Some(*layers.under_sampler()));
        let hooked = layers.each_ref().map(|layers| layers.under_hooks().copied());
        let serves = |row: &Row| {
            let wanted = Domain::ALL.map(|domain| self.shared.record(row.backend(domain), domain));
            wanted.iter().all(Option::is_some) && wanted == if row.debug() { hooked } else { outer }
        };
        let mut rows = AllocatorName::ALL.into_iter().filter_map(|n| n.row(&self.profile()).ok());
        rows.find(|row| serves(row)).map(Row::canonical_name)
    }

    /// The default raw allocator, which no set replaces: the C library, under debug hooks in a debug build.
    ///
    /// It is for what must outlive a change of allocators. Its blocks are not the raw domain's.
    #[must_use]
    pub fn default_raw(self) -> AllocatorRecord {
        self.shared.default_raw
    }

    /// Fixes the allocators: from now on every domain counts as having handed out blocks.
    pub fn start(self) {
        for domain in Domain::ALL {
            self.shared.open(domain.index());
        }
    }

    /// What is running.
    #[must_use]
    pub fn describe(self) -> Description {
        Description {
            profile: self.profile(),
            name: self.row().name(),
            current_name: self.current_name(),
            domains: Domain::ALL.map(|domain| self.describe_domain(domain)),
            threads: self.threads(),
            version: env!("CARGO_PKG_VERSION"),
            mimalloc_version: self.shared.backends.heaps.version(),
        }
    }

    fn describe_domain(self, domain: Domain) -> DomainDescription {
        let backend = self.row().backend(domain);
        let made_with = self.shared.record(backend, domain);
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

    /// Statistics as of now.
    ///
    /// mimalloc's heaps can be visited only while no other thread uses them, so they are left out while the process has
    /// other threads; see `Domains::stats_in`.
    #[must_use]
    pub fn stats(self) -> Stats {
        let heaps = || self.shared.backends.heaps.stats_if_alone();
        Stats {
            mimalloc: self.row().uses(Backend::Mimalloc).then(heaps).flatten(),
            ..self.stats_without_heaps()
        }
    }

    fn stats_without_heaps(self) -> Stats {
        let pools = || self.shared.backends.pools.stats();
        Stats {
            configuration: self.describe(),
            pymalloc: self.row().uses(Backend::Pymalloc).then(pools).flatten(),
            mimalloc: None,
            resident_bytes: process::resident_bytes(),
        }
    }

    /// How many blocks of the pools, or of mimalloc's heaps, are live, zero-size and large ones included; 0 where the C
    /// library serves.
    ///
    /// It is what `sys.getallocatedblocks()` counts. `None` where mimalloc serves and the process has other threads, since
    /// its heaps can be counted only while nobody else uses them; see `Domains::allocated_blocks_in`.
    #[must_use]
    pub fn allocated_blocks(self) -> Option<usize> {
        self.shared.used().map(|backend| backend.of(self.shared.backends).allocated_blocks()).sum()
    }

    /// Usable bytes of a block of the pools behind mem and obj; `None` for any other address, and where no pools serve.
    #[must_use]
    pub fn pool_block_bytes(self, block: *const u8) -> Option<usize> {
        self.row().backend(Domain::Obj).of(self.shared.backends).pool_block_bytes(block)
    }

    /// Gives memory that holds no live block back to the system; returns how many bytes.
    ///
    /// Live blocks are not touched, and what went back costs a page fault when it is needed again. pymalloc counts
    /// exactly; for mimalloc and the C library the drop of the process's resident memory is taken, so what other threads
    /// do meanwhile counts too. mimalloc pages that other threads keep are theirs to release.
    pub fn release(self, level: ReleaseLevel) -> usize {
        self.shared.used().map(|backend| backend.of(self.shared.backends).release(level)).sum()
    }

    /// [`Domains::stats`] with mimalloc's heaps; stops `world` meanwhile.
    ///
    /// In a free-threaded build they are those of every thread that is in no other interpreter. In a build with the GIL
    /// they are mimalloc's default heaps, which hold whatever the process takes from mimalloc. There a thread that exits
    /// counts as one that uses them, and blocks of more than 2 GiB are seen only after their thread has exited.
    ///
    /// # Errors
    ///
    /// What keeps the heaps from being there; see [`InterpreterHeaps::main`](mimalloc_heaps::InterpreterHeaps::main).
    #[cfg(feature = "mimalloc")]
    pub fn stats_in<W: World + ?Sized>(self, world: &W) -> Result<Stats, HeapError> {
        let mut stats = self.stats_without_heaps();
        if self.row().uses(Backend::Mimalloc) {
            stats.mimalloc = Some(self.shared.backends.heaps.stats(world)?);
        }
        Ok(stats)
    }

    /// [`Domains::allocated_blocks`] for mimalloc's heaps too, as [`stats_in`](Self::stats_in) sees them; stops `world`
    /// meanwhile.
    ///
    /// # Errors
    ///
    /// As [`Domains::stats_in`].
    #[cfg(feature = "mimalloc")]
    pub fn allocated_blocks_in<W: World + ?Sized>(self, world: &W) -> Result<usize, HeapError> {
        if self.row().uses(Backend::Mimalloc) {
            return Ok(self.shared.backends.heaps.stats(world)?.allocated_blocks);
        }
        Ok(self.allocated_blocks().unwrap_or_default())
    }

    /// [`Domains::release`] for the mimalloc heaps of every thread; stops `world` meanwhile. Returns the bytes that went back.
    ///
    /// # Errors
    ///
    /// As [`Domains::stats_in`].
    #[cfg(feature = "mimalloc")]
    pub fn release_in<W: World + ?Sized>(
        self,
        world: &W,
        level: ReleaseLevel,
    ) -> Result<usize, HeapError> {
        let heaps = if self.row().uses(Backend::Mimalloc) {
            self.shared.backends.heaps.release_in(world, level)?
        } else {
            0
        };
        Ok(heaps + self.release(level))
    }

    /// Calls `visit` with each pool behind mem and obj, free ones too, arena by arena; with none where the row has no pools.
    ///
    /// Allocates nothing. `visit` does not use these domains.
    #[cfg(feature = "pymalloc")]
    pub fn for_each_pool(self, visit: impl FnMut(pymalloc_core::PoolStats)) {
        if self.row().uses(Backend::Pymalloc) {
            self.shared.backends.pools.for_each_pool(visit);
        }
    }

    /// The record through which the pools get and return arenas; C's `PyObject_GetArenaAllocator`.
    #[cfg(feature = "pymalloc")]
    #[must_use]
    pub fn arena_allocator(self) -> ArenaAllocator {
        self.shared.backends.pools.arena_allocator()
    }

    /// Makes the pools get and return arenas through `record`; C's `PyObject_SetArenaAllocator`.
    ///
    /// # Safety
    ///
    /// 1. The record's functions keep the promises of [`ArenaSource`](pymalloc_core::ArenaSource), from any thread.
    /// 2. Its `free` takes back the arenas of the record before it.
    #[cfg(feature = "pymalloc")]
    pub unsafe fn set_arena_allocator(self, record: ArenaAllocator) {
        // SAFETY: the duties are the caller's 1 and 2.
        unsafe { self.shared.backends.pools.set_arena_allocator(record) };
    }

    /// Calls `hook` before each new arena, with the counts as of then; `None` stops that.
    ///
    /// This is the moment at which `PYTHONMALLOCSTATS` prints.
    ///
    /// # Safety
    ///
    /// 1. The hook does not use the domains, which are in the middle of a request.
    /// 2. The hook does not unwind.
    #[cfg(feature = "pymalloc")]
    pub unsafe fn set_new_arena_hook(self, hook: Option<fn(&PoolStats)>) {
        // SAFETY: 1, 2: the caller's.
        unsafe { self.shared.backends.pools.set_new_arena_hook(hook) };
    }
}

/// What can be promised of pools whose callers hold one lock until they are shared.
#[cfg(feature = "pymalloc")]
fn one_at_a_time() -> ThreadSafety {
    if can_be_shared() { ThreadSafety::OneAtATime } else { ThreadSafety::AnyThread }
}

/// There are no pools.
#[cfg(not(feature = "pymalloc"))]
const fn one_at_a_time() -> ThreadSafety {
    ThreadSafety::OneAtATime
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
