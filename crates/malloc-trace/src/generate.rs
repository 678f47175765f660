//! Programs of operations made from a seed: random ones for tests, the field's benchmark loads for timing.
//!
//! The same arguments give the same program on every machine.

mod random;

pub use random::{op_from_bits, ops_from_bytes, random};
