//! What the heaps promise, on real threads.

mod account;
mod auto_traits;
mod churn;
mod delayed;
mod family;
mod fork;
mod idle;
mod interpreters;
mod memory;
mod programs;
mod refusals;
mod threads;
mod visit;
