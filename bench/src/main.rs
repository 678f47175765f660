//! The driving half of the benchmarks: prepares traces, starts workers, and shows what they measured.

mod driver;
mod table;

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;

/// Replays allocation traces through our allocators, CPython's own and their peers, in one process and one run.
#[derive(Debug, Parser)]
#[command(name = "bench", version)]
struct Cli {
    /// Trace files, or folders of them; otherwise those of PYMEM_TRACES.
    #[arg(long = "trace", value_name = "FILE")]
    traces: Vec<PathBuf>,
    /// Only the traces whose name contains one of these words.
    #[arg(long = "only", value_name = "WORD", value_delimiter = ',')]
    only: Vec<String>,
    /// Only these allocators (cpython is always measured: ratios are relative to it).
    #[arg(long = "rows", value_name = "NAME", value_delimiter = ',')]
    rows: Vec<String>,
    /// The interpreter whose allocators are the baseline.
    #[arg(long, default_value = "/usr/bin/python3")]
    python: PathBuf,
    /// Rounds of warm passes; each round gives every allocator its turn.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Passes a turn.
    #[arg(long, default_value_t = 3)]
    passes: usize,
    /// Fresh processes for each cold figure.
    #[arg(long, default_value_t = 5)]
    cold: usize,
}

fn main() -> Result<()> {
    // A worker without an interpreter around it.
    if let Some(job) = std::env::var_os(pymem_bench::job::JOB_VARIABLE) {
        return pymem_bench::worker::run(&PathBuf::from(job));
    }
    let cli = Cli::parse();
    let traces = driver::find_traces(&cli.traces, &cli.only)?;
    let driver = driver::Driver::new(&cli.python)?;
    let rows = driver.rows(&cli.rows)?;
    let mut results = Vec::new();
    for path in &traces {
        results.push(driver.measure(path, &rows, cli.rounds, cli.passes, cli.cold)?);
    }
    println!("{}", table::ratios(&results));
    Ok(())
}
