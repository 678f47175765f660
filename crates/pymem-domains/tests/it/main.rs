//! The crate's promises, one module a subject. The suite itself, and every crate it uses, allocates from the
//! process-wide obj domain.

use malloc_api::GlobalAdapter;
use pymem_domains::global::Obj;
use pymem_domains::{Build, Profile, Version};

mod auto_traits;
#[cfg(target_os = "linux")]
mod c_records;
mod custom;
mod forks;
mod get_set;
mod names;
mod process;
mod refusals;
mod report;
mod rows;
mod samplers;
#[cfg(target_os = "linux")]
mod signals;
mod table;
mod third_party;
mod threads;
mod typed;
#[cfg(feature = "pymalloc")]
mod under_pools;

#[global_allocator]
static GLOBAL: GlobalAdapter<Obj> = GlobalAdapter::new(Obj);

/// The profile of the tests that hold in any: a release build with the GIL, or what `PYMEM_TEST_PROFILE` asks for.
fn profile() -> Profile {
    match std::env::var("PYMEM_TEST_PROFILE").as_deref() {
        Ok("free-threaded debug") => {
            Profile::new(Version::NEWEST, Build::FreeThreaded, true, true, true).expect("a profile")
        }
        Ok(other) => panic!("no tests for the profile {other:?}"),
        Err(_) => Profile::NEWEST,
    }
}
