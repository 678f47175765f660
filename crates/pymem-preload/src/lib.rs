#![doc = include_str!("../README.md")]

mod abi;
mod capi;
mod command_line;
mod counting;
mod debugging;
mod drawable;
mod environment;
mod exit;
mod gil;
mod heap_map;
mod host;
mod load;
mod malloc_stats;
mod options;
mod refusal;
#[cfg(test)]
mod refusals;
mod report;
mod service;
mod shim;
mod tracing;

pub use abi::{
    pymem_allocated_blocks, pymem_get_allocator, pymem_release, pymem_setup, pymem_stats_json,
};
