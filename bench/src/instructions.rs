//! Owns the count of instructions on hot paths: callgrind runs a worker twice with different numbers of repetitions, and
//! the difference is what a repetition costs, whatever else the machine does. The committed baseline is beside `src/`.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use pymem_bench::hot;
use pymem_bench::job::{JOB_VARIABLE, Job, Task};
use serde::{Deserialize, Serialize};

use crate::driver::Driver;

/// Counts may grow by this factor before the check fails.
const TOLERANCE: f64 = 1.03;

/// The rows that are ours, and the functions that `domains-mimalloc` stands beside.
const ROWS: &[&str] = &[
    "pymalloc-all",
    "pymalloc-locked",
    "domains-pymalloc",
    "domains-gil",
    "domains-mimalloc",
    "mimalloc3",
];

/// The row whose instructions are the loop's own.
const FLOOR: &str = "null";

const BASELINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/instructions.json");

/// Repetitions of the two runs; both are multiples of a batch.
const REPETITIONS: [usize; 2] = [20_000, 120_000];

/// Instructions for a repetition of each path, by row and path.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Counts {
    /// Row, then path, then instructions.
    pub(crate) rows: BTreeMap<String, BTreeMap<String, f64>>,
}

impl Counts {
    /// The committed counts; empty where there are none.
    pub(crate) fn baseline() -> Result<Self> {
        if !Path::new(BASELINE).exists() {
            return Ok(Self::default());
        }
        serde_json::from_slice(&std::fs::read(BASELINE)?)
            .context("bench/instructions.json is not readable")
    }

    fn measured(driver: &Driver) -> Result<Self> {
        let mut counts = Self::default();
        for row in ROWS.iter().chain([&FLOOR]) {
            let mut paths = BTreeMap::new();
            for path in hot::Path::ALL {
                let [few, many] =
                    REPETITIONS.map(|repetitions| total(driver, row, path, repetitions));
                let difference = many?.saturating_sub(few?) as f64;
                let each = difference / (REPETITIONS[1] - REPETITIONS[0]) as f64;
                paths.insert(path.name().to_owned(), (each * 100.0).round() / 100.0);
            }
            counts.rows.insert((*row).to_owned(), paths);
        }
        Ok(counts)
    }
}

/// Counts, prints beside the baseline, and fails on growth; or makes the counts the new baseline.
pub(crate) fn run(driver: &Driver, accept: bool) -> Result<()> {
    let (counts, baseline) = (Counts::measured(driver)?, Counts::baseline()?);
    let mut grown = Vec::new();
    for (row, paths) in &counts.rows {
        for (path, &count) in paths {
            let before = baseline.rows.get(row).and_then(|paths| paths.get(path)).copied();
            let note =
                before.map_or("no baseline".to_owned(), |before| format!("baseline {before:.2}"));
            println!("{row:16} {path:36} {count:9.2} instructions, {note}");
            if row != FLOOR && before.is_some_and(|before| count > before * TOLERANCE) {
                grown.push(format!("{row}, {path}: {count:.2} instructions, {note}"));
            }
        }
    }
    if accept {
        std::fs::write(BASELINE, serde_json::to_string_pretty(&counts)? + "\n")?;
        println!("written: bench/instructions.json");
        return Ok(());
    }
    ensure!(!baseline.rows.is_empty(), "no baseline: make one by --instructions --accept");
    ensure!(
        grown.is_empty(),
        "hot paths grew by more than {:.0} %; where that is meant, renew the baseline by --accept:\n{}",
        100.0 * (TOLERANCE - 1.0),
        grown.join("\n"),
    );
    Ok(())
}

/// Instructions of a whole worker process without an interpreter.
fn total(driver: &Driver, row: &str, path: hot::Path, repetitions: usize) -> Result<u64> {
    let task = Task::Hot { row: row.to_owned(), path, repetitions };
    let job = driver.write(&Job { task, answer: driver.folder().join("answer.json") })?;
    let out = driver.folder().join("callgrind.out");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--quiet"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(std::env::current_exe()?)
        .env(JOB_VARIABLE, job)
        .output()
        .context("counting instructions needs valgrind")?;
    let messages = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the counted worker failed: {messages}");
    let profile = std::fs::read_to_string(&out)?;
    let line = profile
        .lines()
        .find_map(|line| line.strip_prefix("totals:").or(line.strip_prefix("summary:")));
    let count = line.context("callgrind wrote no total")?.trim().parse();
    count.context("callgrind's total is not a number")
}
