//! Owns the answers to a violation that write to stderr.

use std::io::Write as _;

use crate::report::stderr::Stderr;
use crate::report::violation::Violation;

/// Writes the report to stderr without allocating, and aborts the process (SIGABRT).
///
/// The report is the dump and the first line of CPython's fatal error.
pub fn abort(violation: &Violation) {
    report(violation);
    std::process::abort();
}

/// Writes the report to stderr without allocating, and goes on.
pub fn report(violation: &Violation) {
    dump(violation);
    let mut err = Stderr::new();
    // Nobody is left to tell that stderr is closed.
    let _ = write!(err, "Fatal Python error: {}: ", violation.func());
    let _ = err.write_all(violation.message().as_bytes());
    let _ = err.write_all(b"\n");
}

/// Writes the dump alone to stderr without allocating: for hosts whose own fatal error follows.
pub fn dump(violation: &Violation) {
    let _ = violation.write_dump(&mut Stderr::new());
}
