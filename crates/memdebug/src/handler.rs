//! Owns the ready-made answers to a violation.
//! Leaves the text to `dump.rs`; a host with its own fatal error supplies its own handler.

use crate::host::ViolationHandler;
use crate::violation::Violation;

pub use imp::*;
pub(crate) use imp::DEFAULT;

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

#[cfg(feature = "std")]
mod imp {
    use std::io::Write as _;

    use super::{Violation, ViolationHandler};
    use crate::stderr::Stderr;

    pub(crate) const DEFAULT: ViolationHandler = abort;

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

    /// Writes the dump alone to stderr, without allocating: for hosts whose own fatal error follows.
    pub fn dump(violation: &Violation) {
        let _ = violation.write_dump(&mut Stderr::new());
    }
}

#[cfg(not(feature = "std"))]
mod imp {
    pub(crate) const DEFAULT: super::ViolationHandler = super::panic;
}
