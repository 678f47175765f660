//! Owns the ready-made answers to a violation.
//! Leaves the text to `dump.rs`; a host with its own fatal error supplies its own handler.

use crate::report::violation::Violation;

#[cfg(feature = "std")]
pub use crate::report::report::{abort, dump, report};

/// What a [`Host`](crate::Host) starts with.
#[cfg(feature = "std")]
pub(crate) const DEFAULT: crate::ViolationHandler = abort;
/// What a [`Host`](crate::Host) starts with.
#[cfg(not(feature = "std"))]
pub(crate) const DEFAULT: crate::ViolationHandler = panic;

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
