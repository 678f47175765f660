//! The crate's promises, one module a subject. The suite itself, and every crate it uses, allocates from the
//! process-wide obj domain.

use malloc_api::GlobalAdapter;
use pymem_domains::global::Obj;

#[cfg(target_os = "linux")]
mod c_records;
mod custom;
mod forks;
mod get_set;
mod names;
mod process;
mod report;
mod rows;
mod samplers;
#[cfg(target_os = "linux")]
mod signals;
mod table;
mod third_party;
mod threads;
mod typed;

#[global_allocator]
static GLOBAL: GlobalAdapter<Obj> = GlobalAdapter::new(Obj);
