//! Owns the moment of the report at exit, which is there only when it was asked for. Leaves its text to `report.rs`.

use core::sync::atomic::{AtomicI32, Ordering::Relaxed};
use std::io::Write as _;

use crate::observe::report;

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
    if let Some(text) = report::text() {
        // Nobody is left to tell when stderr is closed.
        let _ = std::io::stderr().write_all(text.as_bytes());
    }
}
