//! Owns what driver and worker say to each other: a job goes out in a file, measurements come back in another.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::hot::Path;
use crate::trace::Prepared;

/// Environment variable with the path of the job's file; a process without it is no worker.
pub const JOB_VARIABLE: &str = "PYMEM_BENCH_JOB";

/// One worker process's work.
#[derive(Debug, Serialize, Deserialize)]
pub struct Job {
    /// What to measure.
    pub task: Task,
    /// Where to write the [`Answer`].
    pub answer: PathBuf,
}

/// What a worker measures.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Task {
    /// Which of the named rows this process can open.
    Probe(Vec<String>),
    /// Several passes of each row in one process, in rounds.
    Warm {
        /// What to replay.
        trace: Prepared,
        /// Names of the rows.
        rows: Vec<String>,
        /// Times that all rows take their turn.
        rounds: usize,
        /// Passes a turn; the fastest counts.
        passes: usize,
    },
    /// One pass of one row.
    Cold {
        /// What to replay.
        trace: Prepared,
        /// Name of the row.
        row: String,
    },
    /// One row in several threads at once.
    Threads {
        /// What each thread replays.
        trace: Prepared,
        /// Name of the row.
        row: String,
        /// Number of threads.
        threads: u16,
        /// Who frees what a thread leaves live.
        frees: Frees,
        /// Passes; the fastest counts.
        passes: usize,
    },
    /// One hot path in a loop, for an instruction counter around the process.
    Hot {
        /// Name of the row.
        row: String,
        /// The path.
        path: Path,
        /// Repetitions.
        repetitions: usize,
    },
}

/// Who frees the blocks that a thread leaves live at the end of a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Frees {
    /// The thread itself.
    Own,
    /// The next thread: each block goes from one processor to another.
    #[default]
    Neighbour,
}

/// What a worker found.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Answer {
    /// Version of the interpreter around the worker.
    pub python: Option<String>,
    /// One entry a row, in the job's order.
    pub rows: Vec<Measured>,
}

/// One row's figures; those that a task does not measure are zero.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub struct Measured {
    /// The row's name.
    pub row: String,
    /// Nanoseconds of the fastest pass of each round.
    pub nanoseconds: Vec<u64>,
    /// Page faults of that pass.
    #[serde(default)]
    pub faults: Vec<u64>,
    /// Growth of the resident set at the end of the operations, in bytes.
    pub end_bytes: i64,
    /// Highest growth of the resident set, in bytes.
    pub peak_bytes: i64,
    /// Growth that stays after everything was freed, in bytes.
    pub freed_bytes: i64,
}
