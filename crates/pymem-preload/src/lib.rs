#![doc = include_str!("../README.md")]

mod abi;
mod capi;
mod command_line;
mod counting;
mod debugging;
mod environment;
mod exit;
mod host;
mod load;
mod options;
mod service;
mod shim;

pub use abi::{pymem_get_allocator, pymem_setup};
