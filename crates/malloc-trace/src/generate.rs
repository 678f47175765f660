//! Programs of operations made from a seed: random ones for tests, the field's benchmark loads for timing.
//!
//! The same arguments give the same program on every machine. Loads of several threads are [`Event`](crate::Event)s
//! for [`ThreadedReplay`](crate::ThreadedReplay); the `op`s of any load are a program for one thread.

mod fitted;
mod loads;
mod random;

pub use fitted::{Histogram, fitted};
pub use loads::{cache_scratch, larson, mstress, sh6bench, xmalloc};
pub use random::{op_from_bits, ops_from_bytes, random};
