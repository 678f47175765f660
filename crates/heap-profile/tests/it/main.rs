//! The crate's promises.
#![allow(missing_docs, reason = "a test")]

mod accuracy;
mod calls;
mod exact;
mod peak;
mod pools;
mod refusals;
mod sampled;
mod script;
mod threads;

use heap_profile::{ExactProfiler, SampledProfiler};
use malloc_api::testing::conformance;
use malloc_api::{Domain, LibcMalloc};

#[test]
fn both_profilers_are_allocators_like_any_other() {
    let (_, profile) = script::profile(32);
    conformance(&ExactProfiler::new(LibcMalloc, profile, Domain::Mem));
    conformance(&SampledProfiler::new(LibcMalloc, profile, Domain::Raw, 1));
    conformance(&SampledProfiler::new(LibcMalloc, profile, Domain::Obj, 512));
    assert_eq!(profile.live_bytes(), 0, "what the suite freed is still counted");
}
