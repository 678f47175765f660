//! Owns what the environment asks for: which configuration (`PYTHONMALLOC`, `PYMEM_MALLOC`), and the library's own variables.
//! Leaves hiding a variable to `environment.rs`, and carrying requests out to the file of each noun.
//!
//! | variable | asks for |
//! | --- | --- |
//! | `PYTHONMALLOC` | a configuration, by CPython's names |
//! | `PYMEM_MALLOC` | the same, where `PYTHONMALLOC` is empty, not set, or ignored: the interpreter's `-E` and `-I` do not reach it |
//! | `PYTHONMALLOCSTATS` | non-empty: statistics on stderr, before each new arena and at the end |
//! | `PYTHON_PYMALLOC_HUGEPAGES` | a number but 0: arenas of the pools in reserved huge pages, from 3.15 on |
//! | `PYMEM_DEBUG` | checks beyond CPython's hooks, in the `debug` configurations; guard pages in any |
//! | `PYMEM_REPORT` | files that get the reports of `PYMEM_DEBUG`, one a process, with its number after the name |
//! | `PYMEM_STATS` | a report at exit of what was served: a number, on stderr; else the file that gets it |
//! | `PYMEM_TRACE` | a file that gets every call of the three domains, as a call log |
//! | `PYMEM_TRACE_LIMIT` | bytes at which that file stops growing |
//! | `PYMEM_LIMIT` | bytes of live blocks above which a call gives none; `none`: they are counted alone |
//! | `PYMEM_PROFILE` | a file that gets who holds the memory, and how that is recorded |
//! | `PYMEM_HEAP_MAP` | a file that gets a picture of the heap, at exit and on SIGUSR1 |
//!
//! All but the first five are taken out of the environment: they speak of one process, not of its children.

use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use memdebug::{ConfigureError, Options as DebugOptions, parse_size};
use pymem_domains::{AllocatorName, Preconfig, Profile};

use crate::observe::budget;
use crate::observe::profile_request::ProfileRequest;
use crate::request::command_line::CommandLine;
use crate::request::environment;
use crate::request::refusal::Refusal;

/// What is to be done about a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// Serve this one.
    Serve(AllocatorName),
    /// Install nothing: the host is going to put its own table over ours, or to end with an error of its own.
    StepAside,
}

impl Choice {
    /// What the environment and the command line lead to, by the interpreter's own precedence.
    ///
    /// In dev mode the host installs its table over any other after this choice, so ours would be lost, and blocks of the
    /// one would be freed by the other. An unknown name is the host's to report, in its own words.
    pub(crate) fn new(asked: Option<&[u8]>, dev_mode: bool, profile: &Profile) -> Self {
        if dev_mode {
            return Self::StepAside;
        }
        let config = Preconfig { pythonmalloc: asked, ..Preconfig::default() };
        match config.choose(profile) {
            Ok(name) => Self::Serve(name.unwrap_or(AllocatorName::Default)),
            Err(_) => Self::StepAside,
        }
    }

    /// The choice for the process as it starts.
    ///
    /// # Safety
    ///
    /// 1. No other thread changes the environment.
    pub(crate) unsafe fn of_process(line: CommandLine, profile: &Profile) -> Self {
        // SAFETY: 1: by duty 1.
        let asked = unsafe { RowRequest::of_process(line) };
        // SAFETY: 1: by duty 1.
        Self::new(asked.map(RowRequest::value), unsafe { is_dev_mode(line) }, profile)
    }
}

/// The configuration that the environment asks for, by the variable that does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RowRequest {
    /// `PYTHONMALLOC`, which the interpreter reads too.
    Interpreters(&'static [u8]),
    /// `PYMEM_MALLOC`, of which the interpreter knows nothing.
    Own(&'static [u8]),
}

impl RowRequest {
    /// What the environment asks for, as far as the command line lets it; `None` where it asks for nothing.
    ///
    /// # Safety
    ///
    /// 1. No other thread changes the environment.
    pub(crate) unsafe fn of_process(line: CommandLine) -> Option<Self> {
        let variable = |name| {
            // SAFETY: by duty 1.
            unsafe { environment::value(name) }.filter(|value| !value.is_empty())
        };
        let pythonmalloc = variable(c"PYTHONMALLOC").filter(|_| !line.ignores_environment);
        let own = || variable(c"PYMEM_MALLOC").map(Self::Own);
        pythonmalloc.map(Self::Interpreters).or_else(own)
    }

    /// The name.
    pub(crate) const fn value(self) -> &'static [u8] {
        match self {
            Self::Interpreters(value) | Self::Own(value) => value,
        }
    }
}

/// Whether the interpreter is going to run in dev mode.
///
/// # Safety
///
/// 1. No other thread changes the environment.
pub(crate) unsafe fn is_dev_mode(line: CommandLine) -> bool {
    // SAFETY: 1: by duty 1.
    let value = unsafe { environment::value(c"PYTHONDEVMODE") };
    line.dev_mode || !line.ignores_environment && value.is_some_and(|value| !value.is_empty())
}

/// The first of the library's own variables that asks for something.
///
/// # Safety
///
/// 1. No other thread changes the environment.
pub(crate) unsafe fn asked_by_name() -> Option<&'static CStr> {
    let names = [
        c"PYMEM_DEBUG",
        c"PYMEM_REPORT",
        c"PYMEM_STATS",
        c"PYMEM_TRACE",
        c"PYMEM_PROFILE",
        c"PYMEM_LIMIT",
        c"PYMEM_HEAP_MAP",
        c"PYMEM_MALLOC",
    ];
    names.into_iter().find(|name| {
        // SAFETY: 1: by duty 1.
        unsafe { environment::value(name) }.is_some_and(|value| !value.is_empty())
    })
}

/// Whether `PYTHONMALLOCSTATS` asks for statistics: any value does but the empty one, also `0`.
///
/// # Safety
///
/// 1. No other thread changes the environment.
pub(crate) unsafe fn asks_for_malloc_stats(line: CommandLine) -> bool {
    // SAFETY: by duty 1.
    let value = unsafe { environment::value(c"PYTHONMALLOCSTATS") };
    !line.ignores_environment && value.is_some_and(|value| !value.is_empty())
}

/// Whether `PYTHON_PYMALLOC_HUGEPAGES` asks for reserved huge pages: any number does but 0; the interpreter ignores what is none.
///
/// # Safety
///
/// 1. No other thread changes the environment.
pub(crate) unsafe fn asks_for_huge_pages(line: CommandLine) -> bool {
    // SAFETY: by duty 1.
    let value = unsafe { environment::value(c"PYTHON_PYMALLOC_HUGEPAGES") };
    let value = value.and_then(|value| core::str::from_utf8(value).ok());
    let number = value.and_then(|value| value.trim_start().parse::<i32>().ok());
    !line.ignores_environment && number.is_some_and(|number| number != 0)
}

/// The options of `PYMEM_DEBUG`; without it CPython's hooks.
///
/// In a configuration without hooks, guard pages are for production, and come alone; without `guard` the variable is for
/// others that inherit it.
///
/// # Errors
///
/// [`Refusal::Debug`], [`Refusal::DebugRow`].
///
/// # Safety
///
/// 1. No other thread changes the environment.
pub(crate) unsafe fn debug_options(has_hooks: bool) -> Result<DebugOptions, Refusal> {
    // SAFETY: by duty 1.
    let value = unsafe { environment::value(c"PYMEM_DEBUG") };
    let text = String::from_utf8_lossy(value.unwrap_or_default());
    let options: DebugOptions = text.parse().map_err(Refusal::Debug)?;
    let alone = options.needs_hooks().filter(|_| options.guard.is_some() && !has_hooks);
    match alone {
        Some(option) => Err(Refusal::DebugRow(ConfigureError::NeedsHooks { option })),
        None => Ok(options),
    }
}

/// Where reports of the hooks go instead of standard error, if the environment says so: the path before the process's number.
///
/// # Errors
///
/// [`Refusal::Report`].
///
/// # Safety
///
/// 1. No other thread changes the environment.
pub(crate) unsafe fn choose_report_files() -> Result<(), Refusal> {
    // SAFETY: by duty 1.
    let value = unsafe { environment::value(c"PYMEM_REPORT") };
    let Some(value) = value.filter(|value| !value.is_empty()) else { return Ok(()) };
    // The program may change its folder before there is something to report.
    let prefix = std::path::absolute(OsStr::from_bytes(value));
    prefix.and_then(|prefix| memdebug::report_to_files(&prefix)).map_err(Refusal::Report)
}

/// Bytes at which a call log stops growing, unless the environment says otherwise: 256 million calls.
const TRACE_LIMIT: u64 = 4 << 30;

/// What is asked for of this process besides a configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Requests {
    /// A report at exit.
    pub(crate) stats: Option<StatsRequest>,
    /// A log of every call.
    pub(crate) trace: Option<TraceRequest>,
    /// Who holds the memory.
    pub(crate) profile: Option<ProfileRequest>,
    /// Arenas in reserved huge pages.
    pub(crate) huge_pages: bool,
    /// A picture of the heap.
    pub(crate) heap_map: Option<PathBuf>,
    /// The most bytes of live blocks.
    pub(crate) limit: Option<usize>,
}

/// Where a report at exit goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StatsRequest {
    /// To stderr, that of this process alone.
    Stderr,
    /// Into this file; that of a forked child into one of its own.
    File(PathBuf),
}

/// A log of every call, where and how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TraceRequest {
    pub(crate) path: PathBuf,
    pub(crate) max_bytes: u64,
}

impl Requests {
    /// What the environment asks for; the first call takes the requests out of it.
    ///
    /// # Errors
    ///
    /// [`Refusal::TraceLimit`], [`Refusal::Limit`], [`Refusal::Profile`].
    ///
    /// # Safety
    ///
    /// 1. No other thread uses the environment.
    pub(crate) unsafe fn take() -> Result<Self, Refusal> {
        // SAFETY: 1: by duty 1.
        let take = |name| unsafe { take(name) };
        let max_bytes = take(c"PYMEM_TRACE_LIMIT").map_or(Ok(TRACE_LIMIT), parse_limit)?;
        let path = |value: &[u8]| Path::new(OsStr::from_bytes(value)).to_owned();
        let [trace, profile, heap_map, stats, limit] =
            [c"PYMEM_TRACE", c"PYMEM_PROFILE", c"PYMEM_HEAP_MAP", c"PYMEM_STATS", c"PYMEM_LIMIT"]
                .map(take);
        Ok(Self {
            stats: stats.map(|value| match value.iter().all(u8::is_ascii_digit) {
                true => StatsRequest::Stderr,
                false => StatsRequest::File(path(value)),
            }),
            huge_pages: false,
            trace: trace.map(|value| TraceRequest { path: path(value), max_bytes }),
            profile: profile.map(ProfileRequest::parse).transpose().map_err(Refusal::Profile)?,
            heap_map: heap_map.map(path),
            limit: limit.map(parse_live_limit).transpose()?,
        })
    }
}

/// The value of a variable, which is taken out of the environment; `None` when it is empty or not set.
///
/// # Safety
///
/// 1. No other thread uses the environment.
unsafe fn take(name: &CStr) -> Option<&'static [u8]> {
    // SAFETY: by duty 1.
    let value = unsafe { environment::value(name) };
    // SAFETY: by duty 1.
    unsafe { environment::remove(name) };
    value.filter(|value| !value.is_empty())
}

fn parse_limit(value: &[u8]) -> Result<u64, Refusal> {
    let text = String::from_utf8_lossy(value);
    let bytes = parse_size(&text).ok_or_else(|| Refusal::TraceLimit(text.into_owned()))?;
    Ok(bytes as u64)
}

fn parse_live_limit(value: &[u8]) -> Result<usize, Refusal> {
    let text = String::from_utf8_lossy(value);
    match &*text {
        "none" => Ok(budget::UNLIMITED),
        size => parse_size(size).ok_or_else(|| Refusal::Limit(text.into_owned())),
    }
}

#[cfg(test)]
mod tests {
    use pymem_domains::{AllocatorName as N, Build, Profile, Version};

    use super::Choice::{self, Serve, StepAside};
    use super::{Refusal, parse_limit, parse_live_limit};

    #[test]
    fn limits() {
        assert_eq!(parse_limit(b"1048576").ok(), Some(1 << 20));
        assert_eq!(parse_limit(b"1M").ok(), Some(1 << 20));
        assert!(matches!(parse_limit(b"1T"), Err(Refusal::TraceLimit(value)) if value == "1T"));
        assert_eq!(parse_live_limit(b"4096").ok(), Some(4096));
        assert_eq!(parse_live_limit(b"none").ok(), Some(usize::MAX));
        assert!(matches!(parse_live_limit(b"0"), Err(Refusal::Limit(value)) if value == "0"));
    }

    #[test]
    fn choices() {
        let gil = Profile::new(Version::V3_13, Build::Gil, true, true, false).unwrap();
        let choose = |value: &'static str| Choice::new(Some(value.as_bytes()), false, &gil);
        assert_eq!(Choice::new(None, false, &gil), Serve(N::Default));
        assert_eq!(choose(""), Serve(N::Default));
        assert_eq!(choose("malloc_debug"), Serve(N::MallocDebug));
        assert_eq!(choose("Malloc"), StepAside);
        assert_eq!(Choice::new(None, true, &gil), StepAside);
        let threaded =
            Profile::new(Version::V3_13, Build::FreeThreaded, true, true, false).unwrap();
        assert_eq!(Choice::new(Some(b"pymalloc"), false, &threaded), StepAside);
    }
}
