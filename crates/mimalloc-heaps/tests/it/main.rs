//! What the heaps promise, on real threads.

mod churn;
mod delayed;
mod family;
mod fork;
mod interpreters;
mod memory;
mod programs;
mod threads;
mod visit;
