//! Owns the C library's allocator as a row of the table has it.

use malloc_api::{AllocatorRecord, Domain, LibcMalloc, ReleaseLevel};
use memdebug::ConfigureError;

use super::Serve;
use crate::debug::{Checks, DebugConfig};
use crate::process;

static LIBC: LibcMalloc = LibcMalloc;

/// The record of the C library's allocator.
pub(crate) const fn libc_record() -> AllocatorRecord {
    AllocatorRecord::new(&LIBC)
}

/// The C library's malloc family, the same for every set of domains.
#[derive(Debug)]
pub(crate) struct Libc;

impl Serve for Libc {
    fn record(&'static self, _: Domain) -> Option<AllocatorRecord> {
        Some(libc_record())
    }

    fn checks_over(
        &'static self,
        _inner: AllocatorRecord,
        debug: &DebugConfig,
        checks: Checks,
        domain: Domain,
    ) -> Result<AllocatorRecord, ConfigureError> {
        debug.over(checks, domain, LibcMalloc)
    }

    fn release(&self, level: ReleaseLevel) -> usize {
        match level {
            ReleaseLevel::Arenas => 0,
            ReleaseLevel::Pools | ReleaseLevel::Pages => process::shrinks_by(process::trim_libc),
        }
    }
}
