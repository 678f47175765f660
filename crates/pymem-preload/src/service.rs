//! Owns what serves this process: one set of domains, made once, and its installation in the host.
//! Leaves the choice of a configuration to `options.rs`.

use core::fmt;
use std::sync::OnceLock;

use memdebug::{ConfigureError, Options};
use pymem_domains::{
    AllocatorName, AllocatorRecord, Build, DebugConfig, Domain, Domains, DomainsError, Profile,
};

use crate::counting;
use crate::debugging;
use crate::environment;
use crate::host::{Host, host};
use crate::shim;

/// The domains of this process, and what of them the host uses.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) domains: Domains,
    records: [AllocatorRecord; 3],
    /// Which domains are not the host's own.
    served: [bool; 3],
    /// Whether calls are counted.
    pub(crate) counts: bool,
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
}

impl fmt::Display for InstallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLate => f.write_str("allocators are installed already"),
            Self::Domains(error) => error.fmt(f),
            Self::Options(error) => error.fmt(f),
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
    count: bool,
) -> Result<(), InstallError> {
    // A report at exit looks at the pools from whatever thread exits, so it needs pools with a lock.
    let service = if host.one_lock_for_all() && !count {
        // SAFETY: 1: the host holds its GIL over every call of mem and obj, and there is no second one; the library's own
        // functions that look at the pools ask their callers for it.
        Service::new(Some(host), options, |profile, debug| unsafe {
            Domains::under_lock(profile, Some(name), debug)
        })
    } else {
        Service::new(Some(host), options, |profile, debug| {
            Domains::with_debug(profile, Some(name), debug)
        })
    };
    let mut service = service?;
    if count {
        service.count();
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
                Service::new(host(), Options::new(), any_thread).ok()
            })
            .as_ref(),
    };
    Some(service?.records[domain.index()])
}

impl Service {
    fn new(
        host: Option<&Host>,
        options: Options,
        make: impl FnOnce(Profile, DebugConfig) -> Result<Domains, DomainsError>,
    ) -> Result<Self, InstallError> {
        let profile = host.map_or(Host::ANY_PROFILE, Host::profile);
        let domains = make(profile, debugging::config(options)).map_err(InstallError::Domains)?;
        // The host calls the records itself, past the domains' own record of the first use.
        domains.start();
        let records = Domain::ALL.map(|domain| domains.get_allocator(domain));
        let mut service = Self { domains, records, served: [true; 3], counts: false };
        if let Some(host) = host.filter(|host| host.build == Build::FreeThreaded) {
            service.keep_hosts_part(host, options)?;
        }
        Ok(service)
    }

    /// Leaves mem and obj to a host without the GIL, whose collector finds objects by walking its own heaps: there hooks
    /// go over the host's own records.
    fn keep_hosts_part(&mut self, host: &Host, options: Options) -> Result<(), InstallError> {
        for domain in [Domain::Mem, Domain::Obj] {
            self.served[domain.index()] = false;
            let Some(own) = host.own_record(domain) else { continue };
            self.records[domain.index()] = if self.domains.row().debug() {
                debugging::hooks_over_hosts(domain, own, options).map_err(InstallError::Options)?
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

    /// Gives the host its records.
    ///
    /// # Safety
    ///
    /// 1. Those of [`install`].
    unsafe fn install_in(&self, host: &Host) {
        if self.domains.row().debug() {
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

    /// What serves this process, in one line.
    pub(crate) fn describe(&self) -> String {
        let row = self.domains.row();
        let parts = Domain::ALL.map(|domain| {
            let serves = match self.served[domain.index()] {
                true => row.serves(domain),
                false if row.debug() => String::from("the interpreter's own + debug"),
                false => String::from("the interpreter's own"),
            };
            format!("{domain} {serves}")
        });
        format!("{} ({})", row.canonical_name(), parts.join(", "))
    }
}
