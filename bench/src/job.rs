//! Owns what driver and worker say to each other: a job goes out in a file, measurements come back in another.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::trace::Prepared;

/// Environment variable with the path of the job's file; a process without it is no worker.
pub const JOB_VARIABLE: &str = "PYMEM_BENCH_JOB";

/// One worker process's work.
#[derive(Debug, Serialize, Deserialize)]
pub struct Job {
    /// What to measure.
    pub mode: Mode,
    /// What to replay.
    pub trace: Prepared,
    /// Where to write the [`Answer`].
    pub answer: PathBuf,
}

/// What a worker measures.
#[derive(Debug, Serialize, Deserialize)]
pub enum Mode {
    /// Which of the named rows this process can open.
    Probe(Vec<String>),
    /// Several passes of each row in one process, in rounds.
    Warm {
        /// Names of the rows.
        rows: Vec<String>,
        /// Times that all rows take their turn.
        rounds: usize,
        /// Passes a turn.
        passes: usize,
    },
    /// One pass of one row.
    Cold(String),
}

/// What a worker found.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Answer {
    /// Version of the interpreter around the worker.
    pub python: Option<String>,
    /// One entry a row, in the job's order.
    pub rows: Vec<Measured>,
}

/// One row's figures.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub struct Measured {
    /// The row's name.
    pub row: String,
    /// Nanoseconds of each pass; the first passes of a warm job are in it.
    pub nanoseconds: Vec<u64>,
    /// Growth of the resident set at the end of the operations, in bytes.
    pub end_bytes: i64,
    /// Highest growth of the resident set, in bytes.
    pub peak_bytes: i64,
    /// Growth that stays after everything was freed, in bytes.
    pub freed_bytes: i64,
}
