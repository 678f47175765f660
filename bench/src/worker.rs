//! Owns the measuring process: it reads a job, replays, and writes down what it measured.

use std::path::Path;

use anyhow::{Context, Result};
use malloc_api::AllocatorRecord;
use malloc_trace::{Event, Live, Op, Replay, ThreadedReplay};

use crate::allocators::Records;
use crate::job::{Answer, Frees, Job, Measured, Task};
use crate::trace::{self, Prepared};
use crate::{host, memory, rows};

/// Does the job in the file at `path`.
///
/// # Errors
///
/// Where the job cannot be read, names an unknown row, or the answer cannot be written.
pub fn run(path: &Path) -> Result<()> {
    let job: Job =
        serde_json::from_slice(&std::fs::read(path)?).context("the job is not readable")?;
    let rows = match &job.task {
        Task::Probe(names) => {
            names.iter().filter(|name| open(name).is_ok()).map(|name| named(name)).collect()
        }
        Task::Warm { trace, rows, rounds, passes } => {
            warm(&mut trace::replay(trace)?, rows, *rounds, *passes)?
        }
        Task::Cold { trace, row } => vec![cold(&mut trace::replay(trace)?, row)?],
        Task::Threads { trace, row, threads, frees, passes } => {
            let nanoseconds = threaded(trace, open(row)?, *threads, *frees, *passes)?;
            vec![Measured { nanoseconds, ..named(row) }]
        }
        Task::Hot { row, path, repetitions } => {
            path.run(&open(row)?[2], *repetitions);
            vec![named(row)]
        }
    };
    let answer = Answer { python: host::version(), rows };
    std::fs::write(&job.answer, serde_json::to_vec(&answer)?)?;
    Ok(())
}

fn named(row: &str) -> Measured {
    Measured { row: row.to_owned(), ..Measured::default() }
}

fn open(name: &str) -> Result<Records> {
    let row = rows::find(name).with_context(|| format!("no allocator is called {name}"))?;
    (row.open)().with_context(|| format!("{name} is not available in this process"))
}

fn warm(
    replay: &mut Replay,
    names: &[String],
    rounds: usize,
    passes: usize,
) -> Result<Vec<Measured>> {
    let mut rows = Vec::new();
    for name in names {
        let (nanoseconds, faults) = (Vec::with_capacity(rounds), Vec::with_capacity(rounds));
        rows.push((open(name)?, Measured { nanoseconds, faults, ..named(name) }));
    }
    for _ in 0..rounds {
        for (records, measured) in &mut rows {
            let mut fastest = (u64::MAX, 0);
            for _ in 0..passes {
                let before = memory::page_faults();
                let (nanoseconds, live) = timed(replay, *records)?;
                fastest = fastest.min((nanoseconds, memory::page_faults() - before));
                drop(live);
            }
            measured.nanoseconds.push(fastest.0);
            measured.faults.push(fastest.1);
        }
    }
    Ok(rows.into_iter().map(|(_, measured)| measured).collect())
}

fn cold(replay: &mut Replay, name: &str) -> Result<Measured> {
    let records = open(name)?;
    memory::reset_peak();
    let before = memory::resident_bytes();
    let (nanoseconds, live) = timed(replay, records)?;
    let end = memory::resident_bytes();
    let peak = memory::peak_bytes();
    drop(live);
    let freed = memory::resident_bytes();
    let growth = |bytes: u64| bytes.cast_signed() - before.cast_signed();
    Ok(Measured {
        nanoseconds: vec![nanoseconds],
        end_bytes: growth(end),
        // The peak's counter is kept per core and may lag by some pages; the exact count at the end is a lower bound.
        peak_bytes: growth(peak.max(end)),
        freed_bytes: growth(freed),
        ..named(name)
    })
}

/// One pass: its nanoseconds, and the blocks that the pass leaves live.
fn timed(replay: &mut Replay, records: Records) -> Result<(u64, Live<'_, AllocatorRecord>)> {
    let start = memory::thread_time();
    let live = replay.pass(records)?;
    let time = memory::thread_time() - start;
    Ok((u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), live))
}

/// Nanoseconds of each pass in which every thread replays the whole trace, and then frees what it or its neighbour leaves live.
fn threaded(
    trace: &Prepared,
    records: Records,
    threads: u16,
    frees: Frees,
    passes: usize,
) -> Result<Vec<u64>> {
    let (program, leftovers) = trace::map(trace)?.split_at(trace.operations);
    let by = |thread: u16, ops: &'static [Op], slots_of: u16| {
        let first = u32::from(slots_of) * trace.slots as u32;
        let op = move |op: &Op| op.with_slot(first + op.slot());
        ops.iter().map(move |each| Event { op: op(each), thread, nanos: 0 })
    };
    let programs = (0..threads).flat_map(|thread| by(thread, program, thread));
    let leaves = |thread| match frees {
        Frees::Own => thread,
        Frees::Neighbour => (thread + 1) % threads,
    };
    let frees = (0..threads).flat_map(|thread| by(thread, leftovers, leaves(thread)));
    let times = ThreadedReplay::new(programs.chain(frees)).passes(records, passes)?;
    Ok(times.iter().map(|time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)).collect())
}
