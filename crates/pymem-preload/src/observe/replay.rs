//! Owns the replay of a recorded program on a row of its own, beside whatever serves the process, and what it measures.

use std::fs::{self, File};
use std::io::{self, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use malloc_trace::{OutOfMemory, Recording, RecordingError, Replay};
use pymem_domains::{
    AllocatorName, Domain, Domains, DomainsError, Profile, ReleaseLevel, UnknownAllocator,
};
use thiserror::Error;

/// The fastest of so many passes counts; the first says what memory it takes.
const PASSES: usize = 3;

/// Nothing was replayed, or not to the end.
#[derive(Debug, Error)]
pub(crate) enum ReplayError {
    #[error(transparent)]
    Name(#[from] UnknownAllocator),
    #[error(transparent)]
    Row(#[from] DomainsError),
    #[error("{path}: {1}; give a trace, or what PYMEM_TRACE has written", path = .0.display())]
    Open(PathBuf, io::Error),
    #[error("{path}: {1}", path = .0.display())]
    Read(PathBuf, RecordingError),
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
}

impl ReplayError {
    /// Writes the line to stderr.
    pub(crate) fn say(&self) {
        // Ignore write errors: there is nowhere to report them.
        let _ = writeln!(io::stderr(), "pymem: {self}");
    }
}

/// What a replay found.
#[derive(Debug)]
pub(crate) struct Replayed {
    pub(crate) recording: Recording,
    /// Calls of a pass.
    pub(crate) calls: usize,
    pub(crate) fastest: Duration,
    /// By how many bytes resident memory had grown, at most and at the end of the first pass.
    pub(crate) peak: usize,
    pub(crate) end: usize,
}

/// Makes the calls of the recording at `path`, in their order and on this thread, on the row `name`.
///
/// # Errors
///
/// [`ReplayError`].
pub(crate) fn replay(path: &Path, name: &str) -> Result<Replayed, ReplayError> {
    let name: AllocatorName = name.parse()?;
    let file = File::open(path).map_err(|error| ReplayError::Open(path.to_owned(), error))?;
    let recording = Recording::read(BufReader::with_capacity(1 << 16, file))
        .map_err(|error| ReplayError::Read(path.to_owned(), error))?;
    let mut replay = Replay::new(&recording.ops);
    let domains = Domains::new(Profile::NEWEST, Some(name))?;
    domains.start();
    let records = Domain::ALL.map(|domain| domains.get_allocator(domain));
    // What the preparation has left behind is no part of the row's memory.
    domains.release(ReleaseLevel::Pages);
    reset_peak();
    let before = resident();
    let calls = replay.calls();
    let mut found = Replayed { recording, calls, fastest: Duration::MAX, peak: 0, end: 0 };
    for pass in 0..PASSES {
        let start = Instant::now();
        let live = replay.pass(records)?;
        found.fastest = found.fastest.min(start.elapsed());
        if pass == 0 {
            let end = resident();
            found.end = end.saturating_sub(before);
            // The peak's counter is kept per core and may lag by some pages.
            found.peak = peak().max(end).saturating_sub(before);
        }
        drop(live);
    }
    Ok(found)
}

/// Resident bytes of this process, counted exactly from its page tables.
fn resident() -> usize {
    bytes("/proc/self/smaps_rollup", "Rss:")
}

/// The most resident bytes since [`reset_peak`].
fn peak() -> usize {
    bytes("/proc/self/status", "VmHWM:")
}

/// Lets the peak begin anew, from what is resident now. Where the system refuses, the peak is that of the whole process.
fn reset_peak() {
    let _ = fs::write("/proc/self/clear_refs", "5");
}

/// A field given in kB, in bytes; 0 where the system does not tell.
fn bytes(file: &str, name: &str) -> usize {
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse::<usize>().ok());
    number.unwrap_or_default() * 1024
}
