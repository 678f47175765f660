//! Owns the rows that go through `pymem-domains`, configured as `PYTHONMALLOC` would.

use pymem_domains::{AllocatorName, Domain, Domains, Profile};

use crate::allocators::Records;

/// The C library for raw, pymalloc for mem and obj.
pub(crate) fn pymalloc() -> Option<Records> {
    records(AllocatorName::Pymalloc)
}

/// mimalloc, a heap for each thread and kind.
pub(crate) fn mimalloc() -> Option<Records> {
    records(AllocatorName::Mimalloc)
}

fn records(name: AllocatorName) -> Option<Records> {
    let domains = Domains::new(Profile::NEWEST, Some(name)).ok()?;
    domains.start();
    Some(Domain::ALL.map(|domain| domains.get_allocator(domain)))
}
