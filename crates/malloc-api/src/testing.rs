//! What tests of an allocator need: the contract as a program, and wrappers that fail or count.
//!
//! Nothing here allocates except through the allocator under test, so the module works without `std`; only what starts or
//! looks at a process, behind the feature of that name, needs it.

mod conformance;
mod counting;
mod fail_after;
#[cfg(all(feature = "std", feature = "libc", unix))]
mod forked;
#[cfg(feature = "std")]
mod global_fail_after;
mod live;
#[cfg(all(feature = "std", feature = "libc", target_os = "linux", target_pointer_width = "64"))]
#[doc(hidden)]
pub mod memory_calls;
mod nonconformance;
#[cfg(feature = "std")]
mod process;
mod reviewed;

pub use conformance::{conformance, try_conformance};
pub use counting::{Counting, Counts};
pub use fail_after::FailAfter;
#[cfg(all(feature = "std", feature = "libc", unix))]
pub use forked::forked;
#[cfg(feature = "std")]
pub use global_fail_after::GlobalFailAfter;
#[cfg(all(
    feature = "std",
    feature = "libc",
    target_os = "linux",
    target_pointer_width = "64"
))]
pub use memory_calls::{MemoryCall, Refusals};
pub use nonconformance::Nonconformance;
#[cfg(feature = "std")]
pub use process::{alone, resident_bytes, test_process, under_memory_checker};
pub use reviewed::assert_reviewed;
