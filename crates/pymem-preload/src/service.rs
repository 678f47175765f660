//! Owns what serves this process: one set of domains, made once, and its installation in the host.
//! Leaves the choice of a configuration to `options.rs`.

use core::fmt;
use std::io;
use std::path::Path;
use std::sync::OnceLock;

use memdebug::{ConfigureError, Options};
use mimalloc_heaps::HeapError;
use pymem_domains::{
    AllocatorName, AllocatorRecord, Build, DebugConfig, Domain, Domains, DomainsError, PoolStats,
    Profile, ReleaseLevel, SetAllocatorError,
};

use crate::host::hooks;
use crate::host::python::{Host, host};
use crate::observe::counting;
use crate::observe::drawable::Drawable;
use crate::observe::heap_map;
use crate::observe::tracing;
use crate::request::environment;
use crate::request::options::{Requests, TraceRequest};
use crate::shim;

/// The domains of this process, and what of them the host uses.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) domains: Domains,
    records: [AllocatorRecord; 3],
    /// Which domains are not the host's own.
    served: [bool; 3],
    /// Which domains have guard pages for one block in N, and no hooks.
    sampled: [bool; 3],
    /// Whether calls are counted.
    pub(crate) counts: bool,
    /// What serves mem and obj in place of the domains' own, if the heap is to be drawn.
    drawable: Option<Drawable>,
}

static SERVICE: OnceLock<Service> = OnceLock::new();

/// Why a configuration cannot be installed.
#[derive(Debug)]
pub(crate) enum InstallError {
    /// Something is installed already.
    TooLate,
    /// The table has no such row, or the debug hooks cannot have their options.
    Domains(DomainsError),
    /// The hooks over a host's own record cannot have their options.
    Options(ConfigureError),
    /// The log of calls cannot be started.
    Trace(io::Error),
    /// The heap map has nothing to show.
    NoHeap,
    /// The heaps that can be drawn cannot be had.
    Heaps(HeapError),
    /// They cannot be installed.
    Set(SetAllocatorError),
    /// The heap map cannot be asked for.
    Map(io::Error),
}

impl fmt::Display for InstallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLate => f.write_str(
                "allocators are installed already; a process has them from its first allocation on, so choose once",
            ),
            Self::Domains(error) => error.fmt(f),
            Self::Options(error) => error.fmt(f),
            Self::Trace(error) => write!(
                f,
                "PYMEM_TRACE: the log of calls cannot be started: {error}; name a file that can be written"
            ),
            Self::NoHeap => f.write_str(
                "PYMEM_HEAP_MAP: mem and obj are not on a heap of this library; choose a row of pymalloc or mimalloc, in an \
                 interpreter with the GIL",
            ),
            Self::Heaps(error) => write!(f, "PYMEM_HEAP_MAP: {error}"),
            Self::Set(error) => write!(f, "PYMEM_HEAP_MAP: {error}"),
            Self::Map(error) => write!(
                f,
                "PYMEM_HEAP_MAP: the map cannot be asked for: {error}; name a file, and see that SIGUSR1 can be handled"
            ),
        }
    }
}

/// What was installed, if anything.
pub(crate) fn installed() -> Option<&'static Service> {
    SERVICE.get()
}

/// Serves the host by the configuration `name`, from now on.
///
/// # Errors
///
/// [`InstallError`]; nothing is changed.
///
/// # Safety
///
/// 1. The host is not initialized, and no other thread uses it or the environment.
pub(crate) unsafe fn install(
    host: &'static Host,
    name: AllocatorName,
    options: Options,
    requests: &Requests,
) -> Result<(), InstallError> {
    let draws = requests.heap_map.is_some();
    // A report at exit looks at the pools from whatever thread exits, so it needs pools with a lock.
    let service = if host.one_lock_for_all() && !requests.stats {
        // SAFETY: 1: the host holds its GIL over every call of mem and obj, and there is no second one; the library's own
        // functions that look at the pools ask their callers for it.
        Service::new(Some(host), options, draws, |profile, debug| unsafe {
            Domains::under_lock(profile, Some(name), debug)
        })
    } else {
        Service::new(Some(host), options, draws, |profile, debug| {
            Domains::with_debug(profile, Some(name), debug)
        })
    };
    let mut service = service?;
    if requests.stats {
        service.count();
    }
    if let Some(trace) = &requests.trace {
        service.trace(trace)?;
    }
    if let Some(path) = &requests.heap_map {
        service.draw(path)?;
    }
    if SERVICE.set(service).is_err() {
        return Err(InstallError::TooLate);
    }
    if let Some(service) = SERVICE.get() {
        // SAFETY: 1: by duty 1.
        unsafe { service.install_in(host) };
    }
    Ok(())
}

/// The record that serves `domain`: of what is installed, else of a set of domains made for those who install a record
/// themselves, with the default configuration for the host, or for a build with the GIL where there is none.
pub(crate) fn record(domain: Domain) -> Option<AllocatorRecord> {
    static SPARE: OnceLock<Option<Service>> = OnceLock::new();
    let service = match SERVICE.get() {
        Some(service) => Some(service),
        None => SPARE
            .get_or_init(|| {
                let any_thread = |profile, debug| {
                    Domains::with_debug(profile, Some(AllocatorName::Default), debug)
                };
                Service::new(host(), Options::new(), false, any_thread).ok()
            })
            .as_ref(),
    };
    Some(service?.records[domain.index()])
}

impl Service {
    fn new(
        host: Option<&Host>,
        options: Options,
        draws: bool,
        make: impl FnOnce(Profile, DebugConfig) -> Result<Domains, DomainsError>,
    ) -> Result<Self, InstallError> {
        let profile = host.map_or(Host::ANY_PROFILE, Host::profile);
        let debug = hooks::config(options);
        let domains = make(profile, debug).map_err(InstallError::Domains)?;
        let drawable = if draws { Some(Self::drawable(profile, domains, debug)?) } else { None };
        // The host calls the records itself, past the domains' own record of the first use.
        domains.start();
        let records = Domain::ALL.map(|domain| domains.get_allocator(domain));
        let sampled = [debug.samples() && !domains.row().debug(); 3];
        let mut service =
            Self { domains, records, served: [true; 3], sampled, counts: false, drawable };
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
    ) -> Result<Drawable, InstallError> {
        let backend = domains.row().backend(Domain::Obj);
        let drawable = Drawable::new(backend).map_err(InstallError::Heaps)?;
        let drawable =
            drawable.filter(|_| profile.build() == Build::Gil).ok_or(InstallError::NoHeap)?;
        for domain in [Domain::Mem, Domain::Obj] {
            domains.set_allocator(domain, drawable.record(domain)).map_err(InstallError::Set)?;
        }
        if domains.row().debug() {
            domains.setup_debug_hooks().map_err(InstallError::Set)?;
        } else if debug.samples() {
            domains.setup_samplers().map_err(InstallError::Set)?;
        }
        Ok(drawable)
    }

    /// Leaves mem and obj to a host without the GIL, whose collector finds objects by walking its own heaps: there hooks
    /// go over the host's own records, and guard pages over that of mem.
    fn keep_hosts_part(&mut self, host: &Host, options: Options) -> Result<(), InstallError> {
        for domain in [Domain::Mem, Domain::Obj] {
            self.served[domain.index()] = false;
            self.sampled[domain.index()] &= domain == Domain::Mem;
            let Some(own) = host.own_record(domain) else { continue };
            self.records[domain.index()] = if self.domains.row().debug() {
                hooks::hooks_over_hosts(domain, own, options).map_err(InstallError::Options)?
            } else if self.sampled[domain.index()] {
                hooks::sampler_over_hosts(own, options).map_err(InstallError::Options)?
            } else {
                own
            };
        }
        Ok(())
    }

    /// Counts calls and bytes of each domain from now on.
    fn count(&mut self) {
        self.counts = true;
        for domain in Domain::ALL {
            let record = &mut self.records[domain.index()];
            *record = counting::counted(domain, *record);
        }
    }

    /// Logs every call from now on.
    fn trace(&mut self, request: &TraceRequest) -> Result<(), InstallError> {
        let log = tracing::start(request).map_err(InstallError::Trace)?;
        for domain in Domain::ALL {
            let record = &mut self.records[domain.index()];
            *record = tracing::recorded(log, domain, *record);
        }
        Ok(())
    }

    /// Has the heap drawn at exit and on a signal.
    fn draw(&mut self, path: &Path) -> Result<(), InstallError> {
        let heaps = self.drawable.ok_or(InstallError::NoHeap)?;
        let name = self.domains.row().canonical_name().to_string();
        heap_map::start(heaps, path, name).map_err(InstallError::Map)?;
        for domain in [Domain::Mem, Domain::Obj] {
            let record = &mut self.records[domain.index()];
            *record = heap_map::attentive(*record);
        }
        Ok(())
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
            // Without it a wild pointer faults in the middle of its own report, as it does in CPython; so no error is lost.
            let _ = memdebug::install_fault_handler();
            // Ours replace them at once; what stays is the host's knowledge that there are hooks, by which a collector
            // that walks heaps looks for objects behind the header.
            // SAFETY: no block has been handed out yet, and no other thread uses the host (duty 1).
            unsafe { (host.api.setup_debug_hooks)() };
        }
        for domain in Domain::ALL {
            let record = self.records[domain.index()];
            let first = if domain == Domain::Obj && environment::is_hidden() {
                shim::first_call_shim(record)
            } else {
                record.to_c()
            };
            // SAFETY: 1 and 2: the host has handed out no block yet, and no other thread uses it (duty 1).
            unsafe { host.set_allocator(domain, first) };
        }
    }
}

impl Service {
    /// Whether every domain is ours.
    pub(crate) fn serves_all(&self) -> bool {
        self.served == [true; 3]
    }

    /// Live blocks of the pools; `None` where no pools serve.
    pub(crate) fn allocated_blocks(&self) -> Option<usize> {
        match self.drawable {
            Some(drawable) => drawable.allocated_blocks(),
            None => self.domains.allocated_blocks(),
        }
    }

    /// Counts of the pools; `None` where no pools serve.
    pub(crate) fn pool_stats(&self) -> Option<PoolStats> {
        match self.drawable {
            Some(drawable) => drawable.pool_stats(),
            None => self.domains.stats().pymalloc,
        }
    }

    /// Gives empty memory back to the system; returns how many bytes.
    pub(crate) fn release(&self, level: ReleaseLevel) -> usize {
        self.drawable.map_or(0, |drawable| drawable.release(level)) + self.domains.release(level)
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
