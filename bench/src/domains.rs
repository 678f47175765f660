//! Owns the rows that go through `pymem-domains`, configured as `PYTHONMALLOC` would.

use pymem_domains::{AllocatorName, DebugConfig, Domain, Domains, Profile};

use crate::allocators::Records;

/// The C library for raw, pymalloc for mem and obj.
pub(crate) fn pymalloc() -> Option<Records> {
    records(AllocatorName::Pymalloc)
}

/// The same for callers that are one at a time.
pub(crate) fn pymalloc_under_lock() -> Option<Records> {
    let (name, debug) = (Some(AllocatorName::Pymalloc), DebugConfig::new());
    // SAFETY: 1: the row is not one of those that several threads call.
    let domains = unsafe { Domains::under_lock(Profile::NEWEST, name, debug) }.ok()?;
    Some(started(domains))
}

/// mimalloc, a heap for each thread and kind.
pub(crate) fn mimalloc() -> Option<Records> {
    records(AllocatorName::Mimalloc)
}

fn records(name: AllocatorName) -> Option<Records> {
    Some(started(Domains::new(Profile::NEWEST, Some(name)).ok()?))
}

fn started(domains: Domains) -> Records {
    domains.start();
    Domain::ALL.map(|domain| domains.get_allocator(domain))
}
