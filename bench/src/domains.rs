//! Owns the rows that go through `pymem-domains`, configured as `PYTHONMALLOC` would.

use malloc_trace::Functions;
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
    let [raw, mem, obj] = Domain::ALL.map(|domain| {
        let record = domains.get_allocator(domain).to_c();
        // SAFETY: 1. the record of a `Domains`, which lives as long as the process, keeps the contract of `Malloc`.
        Some(unsafe {
            Functions::from_raw(
                record.ctx,
                record.malloc?,
                record.calloc?,
                record.realloc?,
                record.free?,
            )
        })
    });
    Some([raw?, mem?, obj?, obj?])
}
