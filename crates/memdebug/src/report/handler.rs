//! Owns the ready-made answers to a violation.
//! Leaves the text to `dump.rs`; a host with its own fatal error supplies its own handler.

#[cfg(feature = "std")]
use std::io::Write as _;

#[cfg(feature = "std")]
use crate::report::stderr::Stderr;
use crate::report::violation::Violation;

/// Decides what follows a violation: it may end the process, panic, or return to go on.
///
/// After a return the faulty call has no effect: a bad block is neither freed nor resized, and a call from the wrong
/// thread is carried out.
pub type ViolationHandler = fn(&Violation);

/// What a [`Host`](crate::Host) starts with.
#[cfg(feature = "std")]
pub(crate) const DEFAULT: ViolationHandler = abort;
/// What a [`Host`](crate::Host) starts with.
#[cfg(not(feature = "std"))]
pub(crate) const DEFAULT: ViolationHandler = panic;

/// Writes the report to stderr without allocating, and aborts the process (SIGABRT).
///
/// The report is the dump and the first line of CPython's fatal error.
#[cfg(feature = "std")]
pub fn abort(violation: &Violation) {
    report(violation);
    std::process::abort();
}

/// Writes the report to stderr without allocating, and goes on.
#[cfg(feature = "std")]
pub fn report(violation: &Violation) {
    dump(violation);
    let mut err = Stderr::new();
    // Ignore write errors: there is nowhere to report them.
    let _ = write!(err, "Fatal Python error: {}: ", violation.func());
    let _ = err.write_all(violation.message().as_bytes());
    let _ = err.write_all(b"\n");
}

/// Writes the dump alone to stderr without allocating: for hosts whose own fatal error follows.
#[cfg(feature = "std")]
pub fn dump(violation: &Violation) {
    let _ = violation.write_dump(&mut Stderr::new());
}

/// Panics with the dump and the fatal error as message.
///
/// For Rust tests only: the panic unwinds out of an allocator's method.
///
/// # Panics
///
/// Always.
pub fn panic(violation: &Violation) {
    panic!("{violation}{}: {}", violation.func(), violation.message());
}
