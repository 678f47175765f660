//! Owns the replay in several threads: each replays the whole trace into a table of its own; what it leaves alive is
//! freed by its neighbour, so that every pass ends with frees of another thread's blocks.

use std::panic::resume_unwind;
use std::sync::{Barrier, Mutex, PoisonError};
use std::thread::ScopedJoinHandle;
use std::time::Instant;

use anyhow::Result;

use crate::allocators::Records;
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
    threads: u16,
    passes: usize,
) -> Result<Vec<u64>> {
    let threads = usize::from(threads);
    let mut tables = Vec::with_capacity(threads);
    for _ in 0..threads {
        tables.push(Mutex::new(Table(trace::map(trace)?)));
    }
    let shared = Shared(records);
    let barrier = Barrier::new(threads);
    let spans: Vec<Vec<Span>> = std::thread::scope(|scope| {
        let thread = |own: usize| {
            let (own, neighbour) = (&tables[own], &tables[(own + 1) % threads]);
            let (shared, barrier) = (&shared, &barrier);
            scope
                .spawn(move || (0..passes).map(|_| pass(own, neighbour, shared, barrier)).collect())
        };
        let threads: Vec<_> = (0..threads).map(thread).collect();
        let join = |thread: ScopedJoinHandle<'_, _>| thread.join();
        let spans: Result<_, _> = threads.into_iter().map(join).collect();
        spans.unwrap_or_else(|panic| resume_unwind(panic))
    });
    let whole = |at: usize| {
        let start = spans.iter().map(|spans| spans[at].0).min();
        let end = spans.iter().map(|spans| spans[at].1).max();
        start
            .zip(end)
            .map_or(0, |(start, end)| u64::try_from((end - start).as_nanos()).unwrap_or(u64::MAX))
    };
    Ok((0..passes).map(whole).collect())
}

/// When a thread began and ended its part of a pass.
type Span = (Instant, Instant);

fn pass(
    own: &Mutex<Table>,
    neighbour: &Mutex<Table>,
    shared: &Shared<'_>,
    barrier: &Barrier,
) -> Span {
    barrier.wait();
    let start = Instant::now();
    allocate(own, shared);
    barrier.wait();
    free_leftovers(neighbour, shared);
    (start, Instant::now())
}

fn allocate(table: &Mutex<Table>, shared: &Shared<'_>) {
    let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
    let Mapped { steps, slots, .. } = &mut table.0;
    // SAFETY: 1. a prepared trace into an empty table: `free_leftovers` follows each pass; 2. only these records fill it;
    // 3. every row is an allocator of C's contract.
    unsafe { replay::replay(steps, slots, shared.0) };
}

fn free_leftovers(table: &Mutex<Table>, shared: &Shared<'_>) {
    let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
    let Mapped { leftovers, slots, .. } = &mut table.0;
    // SAFETY: 1. these frees follow the operations of `allocate` on the same table; 2. with the same records; 3. as there.
    unsafe { replay::replay(leftovers, slots, shared.0) };
}
