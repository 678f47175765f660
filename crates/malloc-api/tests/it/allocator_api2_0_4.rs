//! The tests of `allocator.rs` with `allocator_api2` 0.4.

use allocator_api2 as api;

#[expect(clippy::duplicate_mod, reason = "the same tests for each version of the trait")]
#[path = "allocator.rs"]
mod tests;
