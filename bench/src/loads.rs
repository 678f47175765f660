//! Owns the generated loads by name: the allocation patterns that the field's benchmarks are known by.

use malloc_trace::{Event, Op, generate};

/// Operations of a load.
const OPERATIONS: usize = 800_000;

/// Seed of every load: the same on each machine.
const SEED: u64 = 1;

/// A load by its name.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// The name of the benchmark that it is modelled on.
    pub name: &'static str,
    events: fn(n_ops: usize) -> Vec<Event>,
}

/// Every load.
pub const LOADS: &[Load] = &[
    Load { name: "larson", events: |n_ops| generate::larson(SEED, 1, n_ops) },
    Load { name: "mstress", events: |n_ops| generate::mstress(SEED, 1, n_ops) },
    Load { name: "sh6bench", events: |n_ops| generate::sh6bench(1, n_ops) },
    Load { name: "xmalloc", events: |n_ops| generate::xmalloc(SEED, 1, n_ops) },
];

impl Load {
    /// The load as a program for one thread.
    pub fn ops(&self) -> Vec<Op> {
        (self.events)(OPERATIONS).into_iter().map(|event| event.op).collect()
    }
}
