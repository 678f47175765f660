#![doc = include_str!("../README.md")]

mod abi;
mod load;
mod service;
mod shim;
mod start_pages;
mod unwinder;

/// What the command line and the environment ask for.
mod request {
    pub(crate) mod command_line;
    pub(crate) mod environment;
    pub(crate) mod options;
    pub(crate) mod refusal;
}

/// The interpreter that is served: everything that knows CPython.
mod host {
    pub(crate) mod behind;
    pub(crate) mod capi;
    pub(crate) mod code_deaths;
    pub(crate) mod deadline;
    pub(crate) mod debug_offsets;
    pub(crate) mod frame_words;
    pub(crate) mod gil;
    pub(crate) mod hooks;
    pub(crate) mod late;
    pub(crate) mod line_table;
    pub(crate) mod native_frames;
    pub(crate) mod program_start;
    pub(crate) mod python;
    pub(crate) mod python_frames;
    pub(crate) mod python_stacks;
    pub(crate) mod second_interpreter;
    pub(crate) mod stand_ins;
    pub(crate) mod state_word;
}

/// What is told of a process: only on request.
mod observe {
    pub(crate) mod apart;
    pub(crate) mod budget;
    pub(crate) mod counting;
    pub(crate) mod drawable;
    pub(crate) mod heap_map;
    pub(crate) mod moments;
    pub(crate) mod profile;
    pub(crate) mod profile_report;
    pub(crate) mod profile_request;
    pub(crate) mod replay;
    pub(crate) mod report;
    pub(crate) mod tracing;
    pub(crate) mod writer;
}

pub use abi::{
    pymem_allocated_blocks, pymem_counts, pymem_get_allocator, pymem_heap_map, pymem_limit,
    pymem_profile_start, pymem_profile_stop, pymem_profile_traceback, pymem_profile_unrecorded,
    pymem_profile_write, pymem_release, pymem_replay, pymem_report, pymem_reset_peak, pymem_setup,
    pymem_stats_json, pymem_verify,
};
pub use host::stand_ins::{
    _PyMem_GetCurrentAllocatorName, _exit, PyTraceMalloc_Track, PyTraceMalloc_Untrack, setlocale,
    sigaction,
};
