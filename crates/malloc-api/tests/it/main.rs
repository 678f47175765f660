//! The integration tests of `malloc-api`.

mod aligned;
mod allocator_api2_0_2;
mod allocator_api2_0_4;
mod broken;
mod collections;
mod conformance;
mod fail_after;
mod global;
mod libc_malloc;
mod refusals;
mod toy;
