//! Owns the report at exit, which is there only when it was asked for. Leaves the counts to `counting.rs`.

use core::sync::atomic::{AtomicI32, Ordering::Relaxed};
use std::fmt::{self, Write as _};
use std::io::Write as _;

use pymem_domains::Domain;

use crate::counting;
use crate::service;

/// The process that reports: a forked child, which runs the same handlers, does not.
static REPORTER: AtomicI32 = AtomicI32::new(0);

/// Has the report written to stderr when the process exits.
///
/// A process that ends by a signal or by `_exit` runs no handlers and writes none.
pub(crate) fn report_at_exit() {
    // SAFETY: `getpid` has no preconditions.
    REPORTER.store(unsafe { libc::getpid() }, Relaxed);
    // SAFETY: a function that takes nothing; a full table of handlers costs the report alone.
    unsafe { libc::atexit(on_exit) };
}

extern "C" fn on_exit() {
    // SAFETY: `getpid` has no preconditions.
    if REPORTER.load(Relaxed) != unsafe { libc::getpid() } {
        return;
    }
    let mut text = String::new();
    if report(&mut text).is_ok() {
        // Nobody is left to tell when stderr is closed.
        let _ = std::io::stderr().write_all(text.as_bytes());
    }
}

fn report(out: &mut String) -> fmt::Result {
    let Some(service) = service::installed() else { return Ok(()) };
    writeln!(out, "pymem: {}", service.describe())?;
    writeln!(
        out,
        "{:<6} {:>12} {:>10} {:>10} {:>12} {:>8} {:>12} {:>14} {:>14}",
        "domain",
        "malloc",
        "calloc",
        "realloc",
        "free",
        "failed",
        "live blocks",
        "live bytes",
        "peak bytes"
    )?;
    for domain in Domain::ALL {
        let counts = counting::counts(domain);
        let (blocks, bytes, peak) = counting::live(domain);
        writeln!(
            out,
            "{:<6} {:>12} {:>10} {:>10} {:>12} {:>8} {:>12} {:>14} {:>14}",
            domain.name(),
            counts.malloc.load(Relaxed),
            counts.calloc.load(Relaxed),
            counts.realloc.load(Relaxed),
            counts.free.load(Relaxed),
            counts.failed.load(Relaxed),
            blocks,
            bytes,
            peak
        )?;
    }
    Ok(())
}
