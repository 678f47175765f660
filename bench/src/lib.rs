//! The measuring half of the benchmarks: a library that is preloaded into a Python interpreter, so that CPython's own
//! allocators, ours and the peers replay the same trace in one process through the same function pointers.
//!
//! Without the variable of [`job::JOB_VARIABLE`], and in a process that is no interpreter, loading it does nothing.

pub mod allocators;
#[cfg_attr(not(feature = "domains"), path = "no_domains.rs")]
mod domains;
pub mod host;
pub mod hot;
mod initializers;
pub mod job;
pub mod loads;
pub mod memory;
mod mimalloc2;
mod peers;
pub mod rows;
pub mod trace;
pub mod worker;

use std::path::Path;

/// Runs before `main` of the interpreter: its allocators are ready, and its heap is still empty.
extern "C" fn at_load() {
    let Some(job) = std::env::var_os(job::JOB_VARIABLE) else { return };
    if !host::is_python() {
        return;
    }
    initializers::run_those_behind(at_load);
    let code = match worker::run(Path::new(&job)) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("bench worker: {error:#}");
            1
        }
    };
    // SAFETY: ends the process at once; no handler of the interpreter that never started may run.
    unsafe { libc::_exit(code) }
}

#[used]
// SAFETY: an entry of `.init_array` is the address of a C function that the dynamic linker calls once; its arguments
// (argc, argv, envp) may be ignored in the C ABI.
#[unsafe(link_section = ".init_array")]
static AT_LOAD: extern "C" fn() = at_load;
