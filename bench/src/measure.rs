//! Owns the order of the measurements: rounds in which every row takes its turn, so that what else the machine does
//! falls on all of them alike.

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use pymem_bench::job::{Frees, Measured, Task};
use pymem_bench::rows;

use crate::driver::Driver;
use crate::inputs::Input;
use crate::report::{Cell, ThreadsResult, TraceResult, bounds, median};

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Effort {
    /// Warm rounds.
    pub(crate) rounds: usize,
    /// Passes a warm round; the fastest counts.
    pub(crate) passes: usize,
    /// Fresh processes for the warm figures; of each round the median counts.
    pub(crate) processes: usize,
    /// Fresh processes a row for the cold figures.
    pub(crate) cold: usize,
    /// Fresh processes a row for the figures of several threads.
    pub(crate) threads: usize,
}

/// Every row on the trace at `path`, in one thread.
pub(crate) fn one_thread(
    driver: &Driver,
    input: &Input,
    rows: &[String],
    effort: Effort,
) -> Result<TraceResult> {
    let trace = input.prepare(driver.folder())?;
    let bar = progress(&trace.name, effort.processes + effort.cold * rows.len());
    let task = Task::Warm {
        trace: trace.clone(),
        rows: rows.to_vec(),
        rounds: effort.rounds,
        passes: effort.passes,
    };
    let mut warm: Vec<Vec<Measured>> = vec![Vec::new(); rows.len()];
    for _ in 0..effort.processes {
        let found = driver.work(task.clone())?.rows;
        warm.iter_mut().zip(found).for_each(|(samples, row)| samples.push(row));
        bar.inc(1);
    }
    let mut cold: Vec<Vec<Measured>> = vec![Vec::new(); rows.len()];
    for _ in 0..effort.cold {
        for (row, samples) in rows.iter().zip(&mut cold) {
            samples.push(driver.one(Task::Cold { trace: trace.clone(), row: row.clone() })?);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    std::fs::remove_file(&trace.file)?;
    let cells = warm.iter().zip(&cold).map(|(warm, cold)| cell(warm, cold)).collect();
    Ok(TraceResult {
        trace: trace.name,
        operations: trace.operations,
        generated: input.is_generated(),
        cells,
    })
}

/// The median over the processes of what each of them found in a round.
fn rounds(samples: &[Measured], of: fn(&Measured) -> &[u64]) -> Vec<u64> {
    let count = samples.iter().map(|sample| of(sample).len()).min().unwrap_or(0);
    let round = |at: usize| samples.iter().map(|sample| of(sample)[at] as f64).collect::<Vec<_>>();
    (0..count).map(|at| median(&round(at)) as u64).collect()
}

fn cell(warm: &[Measured], cold: &[Measured]) -> Cell {
    let middle = |of: fn(&Measured) -> i64| {
        let values: Vec<f64> = cold.iter().map(|sample| of(sample) as f64).collect();
        if values.is_empty() { 0 } else { median(&values) as i64 }
    };
    Cell {
        warm: rounds(warm, |sample| &sample.nanoseconds),
        faults: rounds(warm, |sample| &sample.faults),
        cold: cold.iter().flat_map(|sample| sample.nanoseconds.iter().copied()).collect(),
        end_bytes: middle(|sample| sample.end_bytes),
        peak_bytes: middle(|sample| sample.peak_bytes),
        freed_bytes: middle(|sample| sample.freed_bytes),
    }
}

/// Passes of several threads in a process: the threads have to meet with no other process on their processors.
const THREADS_PASSES: usize = 20;

/// Every row that allows threads on `input`, once for each number of threads, and each of them again where threads free what their
/// neighbours leave live.
pub(crate) fn many_threads(
    driver: &Driver,
    input: &Input,
    names: &[String],
    counts: &[u16],
    effort: Effort,
) -> Result<Vec<ThreadsResult>> {
    let trace = input.prepare(driver.folder())?;
    let is_threaded = |name: &&String| rows::find(name).is_some_and(|row| row.threads);
    let names: Vec<&String> = names.iter().filter(is_threaded).collect();
    let own = counts.iter().map(|&threads| (threads, Frees::Own));
    let others = counts.iter().map(|&threads| (threads, Frees::Neighbour));
    let ways: Vec<_> = own.chain(others.filter(|&(threads, _)| threads > 1)).collect();
    let bar =
        progress(&format!("{}, threads", trace.name), ways.len() * effort.threads * names.len());
    let operations = trace.operations + trace.leftovers;
    let mut results = Vec::new();
    for (threads, frees) in ways {
        let mut rates: Vec<(String, Vec<f64>)> =
            names.iter().map(|name| ((*name).clone(), Vec::new())).collect();
        for _ in 0..effort.threads {
            for (row, samples) in &mut rates {
                let (row, passes) = (row.clone(), THREADS_PASSES);
                let task = Task::Threads { trace: trace.clone(), row, threads, frees, passes };
                samples.push(rate(driver, task, usize::from(threads) * operations)?);
                bar.inc(1);
            }
        }
        results.push(ThreadsResult { trace: trace.name.clone(), threads, frees, rates });
    }
    bar.finish_and_clear();
    std::fs::remove_file(&trace.file)?;
    Ok(results)
}

/// Millions of operations a second in the fastest pass of a fresh process.
fn rate(driver: &Driver, task: Task, operations: usize) -> Result<f64> {
    let times = driver.one(task)?.nanoseconds;
    let times: Vec<f64> = times.into_iter().map(|time| time as f64).collect();
    Ok(1e3 * operations as f64 / bounds(&times).0)
}

/// A bar on a terminal, of `steps`.
pub(crate) fn progress(name: &str, steps: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix:24} {wide_bar} {pos}/{len}");
    let bar = ProgressBar::new(steps as u64).with_prefix(name.to_owned());
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar
}

#[cfg(test)]
mod tests {
    use pymem_bench::job::Measured;

    use super::rounds;

    #[test]
    fn a_round_is_the_median_of_the_processes() {
        let sample = |nanoseconds: [u64; 2]| Measured {
            nanoseconds: nanoseconds.into(),
            ..Measured::default()
        };
        let samples = [sample([1, 30]), sample([9, 10]), sample([2, 20])];
        assert_eq!(rounds(&samples, |sample| &sample.nanoseconds), [2, 20]);
        assert!(rounds(&samples, |sample| &sample.faults).is_empty());
        assert!(rounds(&[], |sample| &sample.nanoseconds).is_empty());
    }
}
