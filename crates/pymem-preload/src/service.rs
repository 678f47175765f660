//! Owns what serves this process: one set of domains, made once, and its installation in the host.
//! Leaves the choice of a configuration to `options.rs`.

use core::ffi::CStr;
use core::ptr::NonNull;
use std::ffi::CString;
use std::sync::OnceLock;

use heap_profile::Pools;
use malloc_api::immortal;
use memdebug::Options;
use pymem_domains::{
    AllocatorName, AllocatorRecord, Backend, Build, DebugConfig, Domain, Domains, PoolStats,
    Profile, ReleaseLevel, ThreadSafety,
};

use crate::host::python::{Host, host};
use crate::host::{hooks, program_start, python_stacks, second_interpreter};
use crate::observe::drawable::Drawable;
use crate::observe::moments::{self, Attentive, Moment};
use crate::observe::profile::NotedIn;
use crate::observe::{budget, counting, heap_map, profile, tracing};
use crate::request::environment;
use crate::request::options::Requests;
use crate::request::refusal::Refusal;
use crate::shim;
use crate::unwinder;

/// The domains of this process, and what of them the host uses.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) domains: Domains,
    records: [AllocatorRecord; 3],
    /// What serves obj below all that was asked for over it.
    lowest: AllocatorRecord,
    /// Which domains are not the host's own.
    served: [bool; 3],
    /// Which domains have guard pages for one block in N, and no hooks.
    sampled: [bool; 3],
    /// Whether calls are counted.
    pub(crate) counts: bool,
    /// What serves mem and obj in place of the domains' own, if the heap is to be drawn.
    drawable: Option<Drawable>,
}

/// The pools behind mem and obj.
#[derive(Debug)]
struct ProcessPools {
    domains: Domains,
    drawable: Option<Drawable>,
}

impl Pools for ProcessPools {
    fn block_bytes(&self, block: NonNull<u8>) -> Option<usize> {
        let block = block.as_ptr();
        match self.drawable {
            Some(drawable) => drawable.pools()?.block_size(block),
            None => self.domains.pool_block_bytes(block),
        }
    }
}

static SERVICE: OnceLock<Service> = OnceLock::new();

/// What was installed, if anything.
pub(crate) fn installed() -> Option<&'static Service> {
    SERVICE.get()
}

/// Serves the host by the configuration `name`, from now on.
///
/// # Errors
///
/// [`Refusal`]; nothing is changed.
///
/// # Safety
///
/// 1. The host is not initialized, and no other thread uses it or the environment.
pub(crate) unsafe fn install(
    host: &'static Host,
    name: AllocatorName,
    options: Options,
    requests: &Requests,
) -> Result<&'static Service, Refusal> {
    // A report at exit looks at the pools without the GIL, so that they need a lock of their own.
    let threads = match requests.stats.is_none() && host.has_gil() {
        true => ThreadSafety::OneAtATime,
        false => ThreadSafety::AnyThread,
    };
    let mut service = Service::new(Some(host), name, options, requests, threads)?;
    service.observe(host, requests)?;
    if options.leaks.is_some() {
        // The end is no signal, of which the system may say something.
        let _ = moments::at(Moment::End, memdebug::leaks_end);
        service.wrap(&[Domain::Mem, Domain::Obj], |_, record| {
            AllocatorRecord::leak(Attentive(record))
        });
    }
    if SERVICE.set(service).is_err() {
        return Err(Refusal::TooLate);
    }
    let service = SERVICE.get().ok_or(Refusal::TooLate)?;
    // SAFETY: 1: by duty 1.
    unsafe { service.install_in(host) };
    if options.leaks.is_some() {
        // SAFETY: 1: by duty 1.
        unsafe { program_start::set_leaks_baseline() };
    }
    Ok(service)
}

/// The record that serves `domain`: of what is installed, else of a set of domains made for those who install a record
/// themselves, with the default configuration for the host, or for a build with the GIL where there is none.
///
/// Those of a host that may have several GILs may be called from any thread: raw may not be ours there, so that nobody would
/// notice a second interpreter.
pub(crate) fn record(domain: Domain) -> Option<AllocatorRecord> {
    static SPARE: OnceLock<Option<Service>> = OnceLock::new();
    let service = match SERVICE.get() {
        Some(service) => Some(service),
        None => SPARE
            .get_or_init(|| {
                let host = host();
                let threads = match host.is_some_and(|host| host.has_gil() && !host.has_own_gils())
                {
                    true => ThreadSafety::OneAtATime,
                    false => ThreadSafety::AnyThread,
                };
                let (name, requests) = (AllocatorName::Default, Requests::default());
                Service::new(host, name, Options::new(), &requests, threads).ok()
            })
            .as_ref(),
    };
    Some(service?.records[domain.index()])
}

impl Service {
    fn new(
        host: Option<&Host>,
        name: AllocatorName,
        options: Options,
        requests: &Requests,
        threads: ThreadSafety,
    ) -> Result<Self, Refusal> {
        let profile = host.map_or(Profile::NEWEST, Host::profile);
        let profile = profile.with_huge_pages(requests.huge_pages);
        let debug = hooks::config(options);
        let domains = match threads {
            // SAFETY: 1: the host holds its GIL over every call of mem and obj, and there is no second one until `observe`'s record
            // of raw has noticed one; the library's own functions that look at the pools ask their callers for it.
            ThreadSafety::OneAtATime => unsafe { Domains::under_lock(profile, Some(name), debug) },
            ThreadSafety::AnyThread => Domains::with_debug(profile, Some(name), debug),
        }?;
        let draws = requests.heap_map.is_some();
        let drawable = if draws { Some(Self::drawable(profile, domains, debug)?) } else { None };
        if domains.row().debug() || debug.samples() {
            unwinder::load();
        }
        if let Some(host) = host.filter(|_| options.backtrace > 0) {
            python_stacks::start_for_hooks(host, options.backtrace);
        }
        // The host calls the records itself, past the domains' own record of the first use.
        domains.start();
        let has_own_gils = host.is_some_and(Host::has_own_gils);
        let records = Domain::ALL.map(|domain| match has_own_gils {
            true => domains.get_allocator(domain),
            // SAFETY: 1: all interpreters of such a host share one GIL, so that nothing shares the pools.
            false => unsafe { domains.get_allocator_under_one_lock(domain) },
        });
        let sampled = [debug.samples() && !domains.row().debug(); 3];
        let [.., lowest] = records;
        let served = [true; 3];
        let mut service =
            Self { domains, records, lowest, served, sampled, counts: false, drawable };
        if let Some(host) = host.filter(|host| host.build == Build::FreeThreaded) {
            service.keep_hosts_part(host, options)?;
        }
        Ok(service)
    }

    /// Lets heaps that can be drawn serve mem and obj, before their first call.
    fn drawable(
        profile: Profile,
        domains: Domains,
        debug: DebugConfig,
    ) -> Result<Drawable, Refusal> {
        let backend = domains.row().backend(Domain::Obj);
        let drawable = Drawable::new(backend, domains).map_err(Refusal::Heaps)?;
        let drawable = drawable.filter(|_| profile.build() == Build::Gil);
        let drawable = drawable.ok_or(Refusal::NoHeap)?;
        for domain in [Domain::Mem, Domain::Obj] {
            domains.set_allocator(domain, drawable.record(domain)).map_err(Refusal::Set)?;
        }
        if domains.row().debug() {
            domains.setup_debug_hooks().map_err(Refusal::Set)?;
        } else if debug.samples() {
            domains.setup_samplers().map_err(Refusal::Set)?;
        }
        Ok(drawable)
    }

    /// Leaves mem and obj to a host without the GIL, whose collector finds objects by walking its own heaps: there hooks
    /// go over the host's own records, and guard pages over that of mem.
    fn keep_hosts_part(&mut self, host: &Host, options: Options) -> Result<(), Refusal> {
        for domain in [Domain::Mem, Domain::Obj] {
            self.served[domain.index()] = false;
            self.sampled[domain.index()] &= domain == Domain::Mem;
            let Some(own) = host.own_record(domain) else { continue };
            self.records[domain.index()] = if self.domains.row().debug() {
                hooks::over_hosts(domain, own, options).map_err(Refusal::DebugRow)?
            } else if self.sampled[domain.index()] {
                hooks::sampler_over_hosts(own, options).map_err(Refusal::DebugRow)?
            } else {
                own
            };
        }
        Ok(())
    }

    /// Puts what was asked for over the records, from the inside out: counts, a log, the heap map's look for notes, a profile; and over
    /// raw's what notices a second interpreter.
    fn observe(&mut self, host: &Host, requests: &Requests) -> Result<(), Refusal> {
        if let Some(bytes) = requests.limit {
            budget::set_limit(bytes);
        }
        if requests.stats.is_some() || requests.limit.is_some() {
            self.counts = true;
            self.wrap(&Domain::ALL, counting::counted);
        }
        if let Some(trace) = &requests.trace {
            let log = tracing::start(&trace.path, trace.max_bytes).map_err(Refusal::Trace)?;
            self.wrap(&Domain::ALL, |domain, record| tracing::recorded(log, domain, record));
        }
        if let Some(path) = &requests.heap_map {
            let heaps = self.drawable.ok_or(Refusal::NoHeap)?;
            let name = self.domains.row().canonical_name().to_string();
            heap_map::start(heaps, path, name).map_err(Refusal::Map)?;
            self.wrap(&[Domain::Mem, Domain::Obj], |_, record| {
                AllocatorRecord::leak(Attentive(record))
            });
        }
        if let Some(request) = &requests.profile {
            let noted_in = self.noted_in();
            let profile = profile::start(host, request.clone(), true)?;
            // The interpreter frees some raw blocks by the C library.
            self.wrap(&[Domain::Raw], |domain, record| {
                profile.profiled(domain, record, NotedIn::Table)
            });
            self.wrap(&[Domain::Mem, Domain::Obj], |domain, record| {
                profile.profiled(domain, record, noted_in)
            });
        }
        if host.has_own_gils() && (self.is_unshared() || requests.profile.is_some()) {
            let domains = self.domains;
            let watched = |_, raw| second_interpreter::watched(domains, profile::share, raw);
            self.wrap(&[Domain::Raw], watched);
        }
        Ok(())
    }

    /// Whether the pools serve callers that hold one lock, and a second interpreter is waited for.
    pub(crate) fn is_unshared(&self) -> bool {
        let has_pools = self.domains.row().backend(Domain::Obj) == Backend::Pymalloc;
        has_pools && self.domains.threads() == ThreadSafety::OneAtATime
    }

    /// Where a profile that starts later notes them: none has a header.
    pub(crate) fn noted_in_late(&self) -> NotedIn {
        match self.noted_in() {
            NotedIn::Headers => NotedIn::Table,
            noted_in => noted_in,
        }
    }

    /// Where a profile notes the blocks of mem and obj, if it is there from the first one on.
    fn noted_in(&self) -> NotedIn {
        // Hooks and guard pages watch what is around a block, and ask the pools for more than was asked of them.
        if self.domains.row().debug() || self.sampled != [false; 3] {
            return NotedIn::Table;
        }
        self.noted_in_pools().unwrap_or(NotedIn::Headers)
    }

    /// The notes beside the pools; `None` where no pools serve.
    fn noted_in_pools(&self) -> Option<NotedIn> {
        let backend = self.domains.row().backend(Domain::Obj);
        let pools = ProcessPools { domains: self.domains, drawable: self.drawable };
        let own = self.drawable.is_none().then_some((self.domains, self.lowest));
        (backend == Backend::Pymalloc).then(|| NotedIn::pools(immortal::leak(pools), own))?
    }

    fn wrap(
        &mut self,
        domains: &[Domain],
        wrapper: impl Fn(Domain, AllocatorRecord) -> AllocatorRecord,
    ) {
        for domain in domains {
            let record = &mut self.records[domain.index()];
            *record = wrapper(*domain, *record);
        }
    }

    /// Gives the host its records.
    ///
    /// # Safety
    ///
    /// 1. Those of [`install`].
    unsafe fn install_in(&self, host: &Host) {
        // A host that takes note of hooks takes note of what they lie on: ours, not its own pools.
        if self.domains.row().debug() {
            for domain in Domain::ALL {
                // SAFETY: 1 and 2: the host has handed out no block yet, and no other thread uses it (duty 1).
                unsafe { host.set_allocator(domain, self.records[domain.index()].to_c()) };
            }
            hooks::watch_signals();
            // Ours replace them at once; what stays is the host's knowledge that there are hooks, by which a collector
            // that walks heaps looks for objects behind the header.
            // SAFETY: no block has been handed out yet, and no other thread uses the host (duty 1).
            unsafe { (host.api.setup_debug_hooks)() };
        }
        for domain in Domain::ALL {
            let record = self.records[domain.index()];
            let first = if domain == Domain::Obj && environment::is_hidden() {
                shim::first_call_shim(record, !host.serves_second_start(self.domains.row()))
            } else {
                record.to_c()
            };
            // SAFETY: 1 and 2: the host has handed out no block yet, and no other thread uses it (duty 1).
            unsafe { host.set_allocator(domain, first) };
        }
    }

    /// Whether every domain is ours.
    pub(crate) fn serves_all(&self) -> bool {
        self.served == [true; 3]
    }

    /// Live blocks of the pools; `None` where no pools serve.
    pub(crate) fn allocated_blocks(&self) -> Option<usize> {
        match self.drawable {
            Some(drawable) => drawable.pools().map(|pools| pools.allocated_blocks()),
            None => self.domains.allocated_blocks(),
        }
    }

    /// Counts of the pools; `None` where no pools serve.
    pub(crate) fn pool_stats(&self) -> Option<PoolStats> {
        match self.drawable {
            Some(drawable) => drawable.pools().map(|pools| pools.stats()),
            None => self.domains.stats().pymalloc,
        }
    }

    /// Gives empty memory back to the system; returns how many bytes.
    pub(crate) fn release(&self, level: ReleaseLevel) -> usize {
        let pools = self.drawable.and_then(Drawable::pools);
        pools.map_or(0, |pools| pools.release(level)) + self.domains.release(level)
    }

    /// The name of what serves the host now, as it spells it; `None` where another record was installed since.
    pub(crate) fn current_name(&self) -> Option<&'static CStr> {
        static NAME: OnceLock<CString> = OnceLock::new();
        let host = host()?;
        let serves = |domain: Domain| host.own_record(domain) == Some(self.records[domain.index()]);
        let name = self.domains.row().canonical_name().as_str();
        // The names of the table are texts without a NUL.
        let name = NAME.get_or_init(|| CString::new(name).unwrap_or_default());
        Domain::ALL.into_iter().all(serves).then_some(name)
    }

    /// What serves this process, in one line.
    pub(crate) fn describe(&self) -> String {
        let row = self.domains.row();
        let parts = Domain::ALL.map(|domain| {
            let serves = match self.served[domain.index()] {
                true => row.serves(domain),
                false if row.debug() => String::from("the interpreter's own + debug"),
                false => String::from("the interpreter's own"),
            };
            let guard = if self.sampled[domain.index()] { " + guard pages" } else { "" };
            format!("{domain} {serves}{guard}")
        });
        format!("{} ({})", row.canonical_name(), parts.join(", "))
    }
}
