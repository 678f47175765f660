//! Owns `PYTHONMALLOCSTATS`: the statistics of the allocator on stderr, before each new arena and once at the end, as an
//! interpreter prints those of its own pools. Leaves the text to the allocators.
//!
//! The interpreter itself prints nothing for an allocator that it does not know. Where mimalloc serves there are no arenas,
//! and where the C library serves there is no text.

use std::io::Write as _;

use pymem_domains::PoolStats;

use crate::host::python::host;
use crate::service::{self, Service};

/// Prints the statistics of `service` from now on, unless the interpreter has kept objects for itself and prints its own.
pub(crate) fn start(service: &Service) {
    if !service.serves_all() {
        return;
    }
    service.domains.set_new_arena_hook(Some(before_new_arena));
    // SAFETY: a function that takes nothing; a full table of handlers costs the last print alone.
    unsafe { libc::atexit(at_exit) };
}

fn before_new_arena(stats: &PoolStats) {
    print(&stats.to_string());
}

/// An interpreter prints when it is finalized. A process that ends without has threads that may be in the pools.
extern "C" fn at_exit() {
    if host().is_none_or(|host| host.is_initialized()) {
        return;
    }
    if let Some(service) = service::installed() {
        print(&service.domains.stats().to_string());
    }
}

fn print(text: &str) {
    // Nobody is left to tell when stderr is closed.
    let _ = std::io::stderr().write_all(text.as_bytes());
}
