//! Owns the list of allocators that can be measured: their names, and how each of ours comes to its [`Records`].
//! Leaves the interpreter's own allocators to `host.rs` and all others to `peers.rs`.

use malloc_api::{AllocatorRecord, LibcMalloc};
use pymalloc_core::{LocalPymalloc, LockedPymalloc, MmapArenas};

use crate::allocators::{self, OneThread, Records};
use crate::{domains, host, peers};

/// An allocator that can be measured by name.
#[derive(Debug)]
pub struct Row {
    /// Name on the command line and in every table.
    pub name: &'static str,
    /// What it is, in one phrase.
    pub about: &'static str,
    /// Whether any thread may call it, and free another thread's blocks.
    pub threads: bool,
    /// Makes a fresh instance where the allocator has instances; `None` where it is not available here.
    pub open: fn() -> Option<Records>,
}

impl Row {
    const fn new(name: &'static str, about: &'static str, open: fn() -> Option<Records>) -> Self {
        Self { name, about, threads: false, open }
    }

    const fn threaded(self) -> Self {
        Self { threads: true, ..self }
    }
}

/// Name of the row that ratios are relative to.
pub const BASELINE: &str = "cpython";

/// Every row, in the order in which results are shown; the baseline first.
pub const ROWS: &[Row] = &[
    Row::new(BASELINE, "CPython's own: its pymalloc for mem and obj, libc for raw", host::records),
    Row::new("pymalloc", "pymalloc-core without a lock for mem and obj, libc for raw", pymalloc),
    Row::new("pymalloc-all", "pymalloc-core without a lock for all three domains", pymalloc_all),
    Row::new(
        "pymalloc-locked",
        "pymalloc-core with magazines of each thread before its lock, for all three domains",
        pymalloc_locked,
    )
    .threaded(),
    Row::new("domains-pymalloc", "pymem-domains, the row pymalloc", domains::pymalloc).threaded(),
    Row::new(
        "domains-gil",
        "the same as a Python with one GIL has it, without a lock for mem and obj",
        domains::pymalloc_under_lock,
    ),
    Row::new(
        "domains-mimalloc",
        "pymem-domains, the row mimalloc: a heap a thread and kind",
        domains::mimalloc,
    )
    .threaded(),
    Row::new("mimalloc3", "mimalloc 3, plain mi_malloc", peers::mimalloc3).threaded(),
    Row::new("mimalloc2", "mimalloc 2, plain mi_malloc", peers::mimalloc2).threaded(),
    Row::new("jemalloc", "jemalloc 5.3", peers::jemalloc).threaded(),
    Row::new("snmalloc", "snmalloc 0.7", peers::snmalloc).threaded(),
    Row::new("libc", "the C library's malloc", libc_malloc).threaded(),
    Row::new("null", "one fixed pointer: the cost of replaying", peers::null).threaded(),
];

/// The row of this name.
pub fn find(name: &str) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.name == name)
}

fn libc_malloc() -> Option<Records> {
    Some(allocators::all(AllocatorRecord::leak(LibcMalloc)))
}

fn pymalloc() -> Option<Records> {
    Some(allocators::split(AllocatorRecord::leak(LibcMalloc), AllocatorRecord::leak(local())))
}

fn pymalloc_all() -> Option<Records> {
    Some(allocators::all(AllocatorRecord::leak(local())))
}

fn pymalloc_locked() -> Option<Records> {
    let pools: &LockedPymalloc<_, _> = Box::leak(Box::new(LockedPymalloc::new(LibcMalloc)));
    let cached = pools.cached().map(AllocatorRecord::new);
    Some(allocators::all(cached.unwrap_or_else(|| AllocatorRecord::new(pools))))
}

fn local() -> OneThread<LocalPymalloc<LibcMalloc, MmapArenas>> {
    OneThread(LocalPymalloc::new(LibcMalloc))
}
