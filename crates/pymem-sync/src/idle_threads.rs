//! Owns how many threads of [`IdleThread`](crate::IdleThread) live, for whoever counts the threads of the process.

use core::time::Duration;

use crate::sync::{AtomicU64, Ordering};

/// One that is asked for, and does not run yet.
const STARTING: u64 = 1;
/// One that runs.
const RUNNING: u64 = 1 << 16;
/// One that has begun or ended since the process's start.
const CHANGE: u64 = 1 << 32;

/// Relaxed: whoever counts threads asks the system between two reads, and a thread lives from before its first change to behind its
/// last.
static THREADS: AtomicU64 = AtomicU64::new(0);

/// Threads of [`IdleThread`](crate::IdleThread) that run: they use none of the memory that they give back, so a program may be alone
/// beside them.
///
/// Two that are equal were read while the same threads ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdleThreads(u64);

impl IdleThreads {
    /// Those of the process. Waits up to a second for one that starts, which the system counts already.
    #[must_use]
    pub fn now() -> Self {
        for _ in 0..10_000 {
            let threads = THREADS.load(Ordering::Relaxed);
            if threads % RUNNING == 0 {
                return Self(threads);
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        Self(THREADS.load(Ordering::Relaxed))
    }

    /// How many run.
    #[must_use]
    pub const fn count(self) -> usize {
        (self.0 % CHANGE / RUNNING) as usize
    }
}

pub(crate) fn starts() {
    THREADS.fetch_add(STARTING, Ordering::Relaxed);
}

pub(crate) fn cannot_start() {
    THREADS.fetch_sub(STARTING, Ordering::Relaxed);
}

/// The calling thread, which was asked for, runs.
pub(crate) fn runs() {
    THREADS.fetch_add(CHANGE + RUNNING - STARTING, Ordering::Relaxed);
}

/// The calling thread is about to end.
pub(crate) fn ends() {
    THREADS.fetch_add(CHANGE - RUNNING, Ordering::Relaxed);
}

/// The calling thread does not end after all.
pub(crate) fn goes_on() {
    THREADS.fetch_add(CHANGE + RUNNING, Ordering::Relaxed);
}
