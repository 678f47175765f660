//! Owns the measuring process: it reads a job, replays, and writes down what it measured.

use std::path::Path;

use anyhow::{Context, Result};

use crate::allocators::Records;
use crate::job::{Answer, Job, Measured, Task};
use crate::trace::Mapped;
use crate::{host, memory, replay, rows, threads, trace};

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
            warm(&mut trace::map(trace)?, rows, *rounds, *passes)?
        }
        Task::Cold { trace, row } => vec![cold(&mut trace::map(trace)?, row)?],
        Task::Threads { trace, row, threads, passes } => {
            let nanoseconds = threads::replay(trace, &open(row)?, *threads, *passes)?;
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
    mapped: &mut Mapped,
    names: &[String],
    rounds: usize,
    passes: usize,
) -> Result<Vec<Measured>> {
    let mut rows = Vec::new();
    for name in names {
        let nanoseconds = Vec::with_capacity(rounds);
        rows.push((open(name)?, Measured { nanoseconds, ..named(name) }));
    }
    for _ in 0..rounds {
        for (records, measured) in &mut rows {
            let mut fastest = u64::MAX;
            for _ in 0..passes {
                fastest = fastest.min(timed(mapped, records));
                free_leftovers(mapped, records);
            }
            measured.nanoseconds.push(fastest);
        }
    }
    Ok(rows.into_iter().map(|(_, measured)| measured).collect())
}

fn cold(mapped: &mut Mapped, name: &str) -> Result<Measured> {
    let records = open(name)?;
    memory::reset_peak();
    let before = memory::resident_bytes();
    let nanoseconds = timed(mapped, &records);
    let end = memory::resident_bytes();
    let peak = memory::peak_bytes();
    free_leftovers(mapped, &records);
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

fn timed(mapped: &mut Mapped, records: &Records) -> u64 {
    let start = memory::thread_time();
    // SAFETY: 1. a prepared trace, and the table is empty: `free_leftovers` follows each pass; 2. only `records` fills it
    // meanwhile; 3. every row is an allocator of C's contract.
    unsafe { replay::replay(mapped.steps, mapped.slots, records) };
    let time = memory::thread_time() - start;
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn free_leftovers(mapped: &mut Mapped, records: &Records) {
    // SAFETY: 1. these frees follow the operations of `timed`; 2. with the same records; 3. as there.
    unsafe { replay::replay(mapped.leftovers, mapped.slots, records) };
}
