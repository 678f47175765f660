//! What tests of an allocator need: the contract as a program, and wrappers that fail or count.
//!
//! Nothing here allocates except through the allocator under test, so the module works without `std`; only `alone` and
//! `resident_bytes`, behind the feature of that name, need it.

mod block;
mod conformance;
mod counting;
mod fail_after;
mod live;
mod nonconformance;
#[cfg(feature = "std")]
mod process;

pub use conformance::{conformance, try_conformance};
pub use counting::{Counting, Counts};
pub use fail_after::FailAfter;
pub use nonconformance::Nonconformance;
#[cfg(feature = "std")]
pub use process::{alone, resident_bytes};
