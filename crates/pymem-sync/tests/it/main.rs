//! The crate's promises, on real threads.
#![cfg(all(feature = "std", not(pymem_loom)))]
#![allow(missing_docs, reason = "a test")]

mod auto_traits;
mod delayed;
mod fork;
mod idle;
mod interner;
mod lock;
mod memory;
mod properties;
mod published;
mod qsbr;
mod rack;
mod remote_stack;
mod stress;
