//! Owns the rows that go through `pymem-domains`, configured as `PYTHONMALLOC` would.

use pymem_domains::{AllocatorName, Domain, Domains, Profile, PyMemAllocatorEx};

use crate::record::{Record, Records};

/// The C library for raw, pymalloc for mem and obj.
pub(crate) fn pymalloc() -> Option<Records> {
    records(AllocatorName::Pymalloc)
}

/// mimalloc, a heap for each thread and kind.
pub(crate) fn mimalloc() -> Option<Records> {
    records(AllocatorName::Mimalloc)
}

fn records(name: AllocatorName) -> Option<Records> {
    let domains = Domains::new(Profile::CURRENT, Some(name)).ok()?;
    domains.start();
    let [raw, mem, obj] = Domain::ALL.map(|domain| from_c(domains.get_allocator(domain).to_c()));
    Some([raw, mem, obj, obj])
}

fn from_c(record: PyMemAllocatorEx) -> Record {
    // SAFETY: both have the layout of C's `PyMemAllocatorEx`; `AllocatorRecord::to_c` leaves no function null, and an
    // `Option<NonNull<u8>>` has the ABI of a pointer.
    unsafe { std::mem::transmute::<PyMemAllocatorEx, Record>(record) }
}
