//! The integration tests of `malloc-api`.

#![cfg_attr(malloc_api_nightly, feature(allocator_api))]

mod aligned;
mod allocator_api2_0_2;
mod allocator_api2_0_4;
#[cfg(malloc_api_nightly)]
mod allocator_std;
mod auto_traits;
mod broken;
mod collections;
mod conformance;
mod counting;
mod domain;
mod fail_after;
#[cfg(feature = "std")]
mod forked;
mod global;
mod global_fail_after;
mod libc_malloc;
#[cfg(feature = "std")]
mod new_file;
mod record;
mod refusals;
mod toy;
