//! Owns what the library says when it does not do what it was asked: one line on stderr, which tells what was wrong, what
//! was expected, and what to do.

use std::io::{self, Write as _};
use std::path::PathBuf;

use memdebug::{ConfigureError, ParseOptionsError};
use mimalloc_heaps::HeapError;
use pymem_domains::{Build, DomainsError, Rejection, SetAllocatorError, UnknownAllocator};
use thiserror::Error;

use crate::observe::profile_request::RequestError;

/// A request that is not met.
#[derive(Debug, Error)]
pub(crate) enum Refusal {
    /// Allocators are installed already.
    #[error(
        "allocators are installed already; a process has them from its first allocation on, so choose once"
    )]
    TooLate,
    /// The table has no such row, or the debug hooks cannot have their options.
    #[error(transparent)]
    Domains(#[from] DomainsError),
    /// The value of `PYTHONMALLOC` is a name that a free-threaded interpreter cannot have.
    #[error(
        "PYTHONMALLOC={0}: a free-threaded interpreter keeps mem and obj on its own heaps, which its collector walks; \
         {reason}",
        reason = Rejection::OtherBuild(Build::FreeThreaded)
    )]
    FreeThreaded(String),
    /// `PYMEM_MALLOC` is no name that this interpreter can have.
    #[error("PYMEM_MALLOC: {0}")]
    Row(UnknownAllocator),
    /// The interpreter serves itself, and this variable asks for something.
    #[error(
        "{0}: nothing is served in dev mode, for which the interpreter installs hooks of its own; take -X dev or \
         PYTHONDEVMODE away, and set PYTHONMALLOC=debug"
    )]
    DevMode(String),
    /// The program brought its interpreter when it was running, and this variable asks for something.
    #[error(
        "{0}: nothing was served: the program brought its interpreter after its start; have it call pymem_setup before \
         Py_Initialize"
    )]
    LateHost(String),
    /// `PYMEM_DEBUG` is no list of options.
    #[error("PYMEM_DEBUG: {0}")]
    Debug(ParseOptionsError),
    /// The options of `PYMEM_DEBUG` cannot be had here.
    #[error("PYMEM_DEBUG: {0}")]
    DebugRow(ConfigureError),
    /// Reports cannot go to the files of this name.
    #[error(
        "PYMEM_REPORT: reports cannot go to files of this name: {0}; give a path of up to 3,072 bytes"
    )]
    Report(io::Error),
    /// The value of `PYMEM_TRACE_LIMIT` is no number.
    #[error(
        "PYMEM_TRACE_LIMIT: `{0}` is no number of bytes above 0; give one, such as 1048576 or 1M"
    )]
    TraceLimit(String),
    /// The value of `PYMEM_LIMIT` is no number.
    #[error(
        "PYMEM_LIMIT: `{0}` is no number of bytes above 0; give one, such as 512M, or `none` to count without a limit"
    )]
    Limit(String),
    /// The report at exit cannot be written; where that is known at the start, the program does not run.
    #[error("PYMEM_STATS: {} cannot be written: {error}; name a file in a folder that can be", path.display())]
    Stats { path: PathBuf, error: io::Error },
    /// The log of calls cannot be started.
    #[error(
        "PYMEM_TRACE: the log of calls cannot be started: {0}; name a file that can be written"
    )]
    Trace(io::Error),
    /// The value of `PYMEM_PROFILE` asks for no profile.
    #[error("PYMEM_PROFILE: {0}")]
    Profile(RequestError),
    /// Objects cannot be profiled.
    #[error(
        "PYMEM_PROFILE: a free-threaded interpreter tells no frames without stopping its threads; profile the program in an \
         interpreter with the GIL"
    )]
    ProfileFreeThreaded,
    /// A profile was recorded before, with other options.
    #[error("the process has recorded a profile with other options, which every other has too")]
    OtherProfile,
    /// Stacks cannot be told.
    #[error(
        "PYMEM_PROFILE: this interpreter does not tell where its frames are; profile the program in one of 3.9 to 3.15"
    )]
    ProfileFrames,
    /// The tables of a profile cannot be had.
    #[error("PYMEM_PROFILE: {0}")]
    ProfileMemory(heap_profile::ProfileError),
    /// The profile cannot be started.
    #[error(
        "PYMEM_PROFILE: the profile cannot be written: {0}; name a file in a folder that can be written"
    )]
    ProfileFile(io::Error),
    /// The profile cannot be written. The program goes on.
    #[error(
        "PYMEM_PROFILE: {} cannot be written: {error}; name a file in a folder that can be",
        path.display()
    )]
    NoProfile { path: PathBuf, error: io::Error },
    /// The heap map has nothing to show.
    #[error(
        "PYMEM_HEAP_MAP: mem and obj are not on a heap of this library; choose a row of pymalloc or mimalloc, in an \
         interpreter with the GIL"
    )]
    NoHeap,
    /// The heaps that can be drawn cannot be had.
    #[error("PYMEM_HEAP_MAP: {0}")]
    Heaps(HeapError),
    /// The heaps that can be drawn cannot be installed.
    #[error("PYMEM_HEAP_MAP: {0}")]
    Set(SetAllocatorError),
    /// The heap map cannot be asked for.
    #[error(
        "PYMEM_HEAP_MAP: the map cannot be asked for: {0}; name a file, and see that SIGUSR1 can be handled"
    )]
    Map(io::Error),
    /// The heap map cannot be written. The program goes on.
    #[error(
        "PYMEM_HEAP_MAP: {} cannot be written: {error}; name a file in a folder that can be",
        path.display()
    )]
    NoHeapMap { path: PathBuf, error: io::Error },
}

impl Refusal {
    /// Writes the line to stderr.
    pub(crate) fn say(&self) {
        // Ignore write errors: there is nowhere to report them.
        let _ = writeln!(io::stderr(), "pymem-preload: {self}");
    }
}

/// Says once, without formatting, that reports will have no Python frames. The program goes on.
pub(crate) fn say_no_frames() {
    const TEXT: &str = "pymem-preload: PYMEM_DEBUG: this interpreter does not tell where its frames are; reports have \
        native frames alone\n";
    // SAFETY: the bytes of the text. Ignore write errors: there is nowhere to report them.
    unsafe { libc::write(libc::STDERR_FILENO, TEXT.as_ptr().cast(), TEXT.len()) };
}

#[cfg(test)]
mod tests {
    use heap_report::profile::{ProfileFile, ReportFormat};
    use malloc_api::testing::assert_reviewed;
    use malloc_trace::{Op, OutOfMemory, Recording};
    use pymem_domains::{AllocatorName, Backend, Domain};

    use super::Refusal as R;
    use super::{ConfigureError, DomainsError, HeapError, RequestError, SetAllocatorError, io};
    use crate::observe::profile_report::ReportError;
    use crate::observe::replay::ReplayError;

    #[test]
    fn every_refusal_is_as_it_was_reviewed() {
        let no_such_file = || io::Error::from_raw_os_error(libc::ENOENT);
        let no_memory = ConfigureError::NoMemory { option: "quarantine" };
        let hooks = SetAllocatorError::Options { domain: Domain::Obj, error: no_memory };
        let used = SetAllocatorError::AfterFirstAllocation { domain: Domain::Mem };
        let word = "stricct".parse::<memdebug::Options>().expect_err("a faulty text");
        let format = "pdf".parse::<ReportFormat>().expect_err("no format");
        let unread = ProfileFile::read(&b"{}"[..]).expect_err("no profile");
        let row = "jemalloc".parse::<AllocatorName>().expect_err("no row");
        let no_recording = Recording::read(&b"{}"[..]).expect_err("no recording");
        let memory = OutOfMemory { op: Op::malloc(7, Domain::Obj, 100) };
        let path = || "/no/app.json".into();
        let no_map = R::NoHeapMap { path: "/no/heap.svg".into(), error: no_such_file() };
        let no_profile = R::NoProfile { path: "/no/app.html".into(), error: no_such_file() };
        let no_stats = R::Stats { path: "/no/stats.txt".into(), error: no_such_file() };
        assert_reviewed(
            include_str!("../../tests/refusals.txt"),
            &[
                ("pymem_preload::Refusal::TooLate", &R::TooLate),
                ("pymem_preload::Refusal::Domains", &R::Domains(DomainsError::Hooks(hooks))),
                ("pymem_preload::Refusal::FreeThreaded", &R::FreeThreaded("pymalloc".into())),
                ("pymem_preload::Refusal::Row", &R::Row(row.clone())),
                ("pymem_preload::Refusal::DevMode", &R::DevMode("PYMEM_DEBUG".into())),
                ("pymem_preload::Refusal::LateHost", &R::LateHost("PYMEM_DEBUG".into())),
                ("pymem_preload::Refusal::Debug", &R::Debug(word)),
                (
                    "pymem_preload::Refusal::DebugRow",
                    &R::DebugRow(ConfigureError::NeedsHooks { option: "strict" }),
                ),
                ("pymem_preload::Refusal::Report", &R::Report(io::ErrorKind::InvalidInput.into())),
                ("pymem_preload::Refusal::TraceLimit", &R::TraceLimit("1T".into())),
                ("pymem_preload::Refusal::Limit", &R::Limit("-1".into())),
                ("pymem_preload::Refusal::Stats", &no_stats),
                ("pymem_preload::Refusal::Trace", &R::Trace(no_such_file())),
                (
                    "pymem_preload::Refusal::Profile",
                    &R::Profile(RequestError::Unknown("fast".into())),
                ),
                ("pymem_preload::Refusal::ProfileFreeThreaded", &R::ProfileFreeThreaded),
                ("pymem_preload::Refusal::OtherProfile", &R::OtherProfile),
                ("pymem_preload::Refusal::ProfileFrames", &R::ProfileFrames),
                (
                    "pymem_preload::Refusal::ProfileMemory",
                    &R::ProfileMemory(heap_profile::ProfileError::NoMemory(65_536)),
                ),
                ("pymem_preload::Refusal::ProfileFile", &R::ProfileFile(no_such_file())),
                ("pymem_preload::Refusal::NoProfile", &no_profile),
                ("pymem_preload::Refusal::NoHeap", &R::NoHeap),
                ("pymem_preload::Refusal::Heaps", &R::Heaps(HeapError::OutOfMemory)),
                ("pymem_preload::Refusal::Set", &R::Set(used)),
                ("pymem_preload::Refusal::Map", &R::Map(no_such_file())),
                ("pymem_preload::Refusal::NoHeapMap", &no_map),
                ("pymem_preload::RequestError::NoFile", &RequestError::NoFile),
                ("pymem_preload::RequestError::Unknown", &RequestError::Unknown("fast".into())),
                ("pymem_preload::RequestError::Interval", &RequestError::Interval("0".into())),
                ("pymem_preload::RequestError::Frames", &RequestError::Frames("129".into())),
                ("pymem_preload::ReplayError::Name", &ReplayError::Name(row)),
                (
                    "pymem_preload::ReplayError::Row",
                    &ReplayError::Row(DomainsError::Unavailable {
                        domain: Domain::Obj,
                        backend: Backend::Mimalloc,
                    }),
                ),
                ("pymem_preload::ReplayError::Open", &ReplayError::Open(path(), no_such_file())),
                ("pymem_preload::ReplayError::Read", &ReplayError::Read(path(), no_recording)),
                ("pymem_preload::ReplayError::Memory", &ReplayError::Memory(memory)),
                ("pymem_preload::ReportError::Format", &ReportError::Format(format)),
                ("pymem_preload::ReportError::Open", &ReportError::Open(path(), no_such_file())),
                ("pymem_preload::ReportError::Read", &ReportError::Read(path(), unread)),
                ("pymem_preload::ReportError::Write", &ReportError::Write(path(), no_such_file())),
            ],
        );
    }
}
