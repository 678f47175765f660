//! Owns what a replay calls: the functions of three domains. Leaves the list of allocators to `rows.rs`.

use malloc_api::Malloc;
use malloc_trace::Functions;

/// An allocator as CPython calls it: a context and four C functions.
pub type Record = Functions<'static>;

/// The allocators of the three domains: raw, mem, obj; the fourth repeats obj, so that two bits index without a check.
pub type Records = [Record; 4];

/// The same allocator in each domain.
pub fn all(record: Record) -> Records {
    [record; 4]
}

/// One allocator for raw and another for mem and obj, as in CPython's own table.
pub fn split(raw: Record, objects: Record) -> Records {
    [raw, objects, objects, objects]
}

/// The functions of a Rust allocator, which lives until the process ends.
pub fn of<M: Malloc + 'static>(allocator: M) -> Record {
    Functions::of(Box::leak(Box::new(allocator)))
}
