//! Owns the replay in several threads: each replays the whole trace into a table of its own; what it leaves alive is
//! freed by its neighbour, so that every pass ends with frees of another thread's blocks.

use std::sync::{Barrier, Mutex, PoisonError};
use std::time::Instant;

use anyhow::Result;

use crate::record::Records;
use crate::replay;
use crate::trace::{self, Mapped, Prepared};

/// Records that several threads use at once.
struct Shared<'a>(&'a Records);

// SAFETY: a row is opened for threads only where `Row::threads` says that its functions may be called from any thread.
unsafe impl Sync for Shared<'_> {}

/// A table of slots on its way from one thread to its neighbour.
struct Table(Mapped);

// SAFETY: the pointers in it lead to blocks of an allocator that allows any thread to free any block.
unsafe impl Send for Table {}

/// Wall-clock nanoseconds of each pass: from the first thread's start to the last thread's last free.
///
/// # Errors
///
/// Where the trace cannot be mapped.
///
/// # Panics
///
/// Where a thread panics.
pub fn replay(
    trace: &Prepared,
    records: &Records,
    threads: usize,
    passes: usize,
) -> Result<Vec<u64>> {
    let mut tables = Vec::with_capacity(threads);
    for _ in 0..threads {
        tables.push(Mutex::new(Table(trace::map(trace)?)));
    }
    let shared = Shared(records);
    let barrier = Barrier::new(threads + 1);
    let times = std::thread::scope(|scope| {
        for own in 0..threads {
            let (tables, shared, barrier) = (&tables, &shared, &barrier);
            scope.spawn(move || {
                for _ in 0..passes {
                    barrier.wait();
                    allocate(&tables[own], shared);
                    barrier.wait();
                    free_leftovers(&tables[(own + 1) % threads], shared);
                    barrier.wait();
                }
            });
        }
        let mut times = Vec::with_capacity(passes);
        for _ in 0..passes {
            barrier.wait();
            let start = Instant::now();
            barrier.wait();
            barrier.wait();
            times.push(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
        }
        times
    });
    Ok(times)
}

fn allocate(table: &Mutex<Table>, shared: &Shared<'_>) {
    let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
    let Mapped { ops, slots, .. } = &mut table.0;
    // SAFETY: 1. a prepared trace into an empty table: `free_leftovers` follows each pass; 2. only these records fill it;
    // 3. every row is an allocator of C's contract.
    unsafe { replay::replay(ops, slots, shared.0) };
}

fn free_leftovers(table: &Mutex<Table>, shared: &Shared<'_>) {
    let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
    let Mapped { leftovers, slots, .. } = &mut table.0;
    // SAFETY: 1. these frees follow the operations of `allocate` on the same table; 2. with the same records; 3. as there.
    unsafe { replay::replay(leftovers, slots, shared.0) };
}
