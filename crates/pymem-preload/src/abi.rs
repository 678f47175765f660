//! Owns the library's C interface, `pymem.h`: for embedders, and for tools inside a running process.

use core::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::ptr::NonNull;

use pymem_domains::{AllocatorName, Domain, PyMemAllocatorEx, ReleaseLevel};

use crate::host::python::host;
use crate::load;
use crate::observe::profile_report::ReportError;
use crate::observe::profile_request::ProfileRequest;
use crate::observe::replay::{self, ReplayError, Replayed};
use crate::observe::{budget, counting, heap_map, profile, profile_report, report};
use crate::request::command_line::CommandLine;
use crate::request::refusal::Refusal;
use crate::service;

/// Every function with a status: done.
const OK: c_int = 0;
/// `pymem_setup`, `pymem_replay`: a name that is none, or that cannot be had; null.
const UNKNOWN_NAME: c_int = -1;
/// `pymem_setup`: the interpreter has started, allocators are installed already, or there is no interpreter.
const TOO_LATE: c_int = -2;

/// `pymem_counts`, `pymem_limit`: nothing is counted.
const NOT_COUNTED: c_int = -1;
/// `pymem_heap_map`: the heap is not one that can be drawn.
const NO_MAP: c_int = -1;
/// `pymem_heap_map`, `pymem_profile_write`, `pymem_report`: the file cannot be written.
const NOT_WRITTEN: c_int = -2;
/// `pymem_profile_stop`, `pymem_profile_traceback`, `pymem_profile_write`: nothing is profiled.
const NO_PROFILE: c_int = -1;
/// `pymem_profile_traceback`: no block that the profile knows.
const NO_BLOCK: c_int = -2;
/// `pymem_profile_unrecorded`: there is nothing to call.
const NO_WORK: c_int = -1;
/// `pymem_profile_start`: it is recorded already.
const WAS_RECORDING: c_int = 1;
/// `pymem_profile_start`: no request for a profile.
const NO_REQUEST: c_int = -1;
/// `pymem_profile_start`: the file cannot be written, there are no stacks to be told, or `tracemalloc` traces.
const NOT_STARTED: c_int = -2;
/// `pymem_profile_start`: a profile that was stopped goes on with its own options alone.
const OTHER_OPTIONS: c_int = -3;
/// `pymem_report`: an unknown format, or null.
const NO_FORMAT: c_int = -1;
/// `pymem_report`, `pymem_replay`: the file is not what it should be.
const NOT_READ: c_int = -3;
/// `pymem_replay`: a call gave no block.
const NO_MEMORY: c_int = -4;

/// Installs the configuration `name` in the interpreter of this process, before it is initialized.
///
/// `name` is one of CPython's `PYTHONMALLOC` names; null or empty is `default`. It goes before the variable
/// `PYTHONMALLOC`, which the interpreter does not see until it has chosen its allocators. Nothing is printed.
///
/// Returns 0 when the allocators are installed; -1, with nothing changed, for an unknown name, one that this interpreter
/// cannot have, or a `PYMEM_DEBUG` that cannot be had; -2, with nothing changed, when it is too late: the interpreter is
/// initialized or up to 3.11 has blocks of an earlier run, the library was preloaded or has been set up before, or no interpreter that
/// takes allocators is there.
///
/// # Safety
///
/// 1. `name` is null or a text that ends with a NUL.
/// 2. No other thread uses the interpreter or the environment during the call.
/// 3. The interpreter has not run in this process before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pymem_setup(name: *const c_char) -> c_int {
    // SAFETY: 1: by duty 1.
    let Ok(name) = parse(unsafe { text(name) }.unwrap_or_default()) else { return UNKNOWN_NAME };
    let Some(host) = host() else { return TOO_LATE };
    if service::installed().is_some() || host.is_initialized() || host.has_blocks() {
        return TOO_LATE;
    }
    if name.row(&host.profile()).is_err() {
        return UNKNOWN_NAME;
    }
    // SAFETY: 1: not initialized, and by duty 2.
    match unsafe { load::setup(host, name, CommandLine::default()) } {
        Ok(_) => OK,
        Err(_) => UNKNOWN_NAME,
    }
}

fn parse(text: &[u8]) -> Result<AllocatorName, ()> {
    match core::str::from_utf8(text) {
        Ok("") => Ok(AllocatorName::Default),
        Ok(name) => name.parse().map_err(drop),
        Err(_) => Err(()),
    }
}

/// Stores in `out` the record that serves `domain`: 0 for raw, 1 for mem, 2 for obj.
///
/// It is the record that is installed; where nothing is, one of the `default` configuration, to be installed by the
/// caller. It stays valid for ever. Its functions are called as an interpreter calls them: those of raw by any thread, those of
/// mem and obj by one that holds the GIL; where no interpreter is, and where nothing is installed and a subinterpreter may have
/// a GIL of its own, these may be called by any thread too. Any other number stores five nulls.
/// A null `out` does nothing.
///
/// # Safety
///
/// 1. `out` is null or points to five writable words.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pymem_get_allocator(domain: c_int, out: *mut PyMemAllocatorEx) {
    if out.is_null() {
        return;
    }
    let record = Domain::try_from(i64::from(domain)).ok().and_then(service::record);
    let record = record.map_or(PyMemAllocatorEx::NULL, |record| record.to_c());
    // SAFETY: by duty 1.
    unsafe { out.write(record) };
}

/// Number of live blocks of the pools behind mem and obj, large and zero-size ones included.
///
/// It is what `sys.getallocatedblocks()` would count. 0 where nothing is installed, or the C library serves; the largest
/// `size_t` where mimalloc or the interpreter itself serves, whose blocks cannot be counted while other threads run. The
/// calling thread must hold the GIL, where there is one.
#[unsafe(no_mangle)]
pub extern "C" fn pymem_allocated_blocks() -> usize {
    let Some(service) = service::installed() else { return 0 };
    if service.serves_all() { service.allocated_blocks().unwrap_or(usize::MAX) } else { usize::MAX }
}

/// Gives memory that holds no live block back to the system; returns how many bytes, 0 where nothing is installed.
///
/// `level` 0 and below looks for empty arenas; 1 also for empty pools, and trims the C library's heap; 2 and above also for
/// empty pages. The calling thread must hold the GIL, where there is one.
#[unsafe(no_mangle)]
pub extern "C" fn pymem_release(level: c_int) -> usize {
    service::installed().map_or(0, |service| service.release(ReleaseLevel::from_number(level)))
}

/// Stores how many blocks of the three domains together are live, their bytes as they were requested, and the most bytes that
/// were live at a time since the start or the last `pymem_reset_peak`.
///
/// Returns 0; -1, with nothing stored, in a process that does not count (`PYMEM_LIMIT`, `PYMEM_STATS`). A null pointer leaves
/// that number out. May be called from any thread; allocates nothing.
///
/// # Safety
///
/// 1. Each pointer is null or points to a writable `size_t`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pymem_counts(
    blocks: *mut usize,
    bytes: *mut usize,
    peak_bytes: *mut usize,
) -> c_int {
    if !service::installed().is_some_and(|service| service.counts) {
        return NOT_COUNTED;
    }
    let live = Domain::ALL.map(|domain| counting::live(domain).blocks).iter().sum();
    for (out, number) in [(blocks, live), (bytes, budget::live()), (peak_bytes, budget::peak())] {
        if !out.is_null() {
            // SAFETY: by duty 1.
            unsafe { out.write(number) };
        }
    }
    OK
}

/// Begins the peak of `pymem_counts` anew, at what is live now. May be called from any thread.
#[unsafe(no_mangle)]
pub extern "C" fn pymem_reset_peak() {
    budget::reset_peak();
}

/// Lets a call that would bring the live blocks of the three domains together above `bytes` give none, from now on.
///
/// What is live already stays. The largest `size_t` is no limit. Returns 0; -1, with nothing changed, in a process that does not
/// count (`PYMEM_LIMIT`, `PYMEM_STATS`). May be called from any thread.
#[unsafe(no_mangle)]
pub extern "C" fn pymem_limit(bytes: usize) -> c_int {
    if !service::installed().is_some_and(|service| service.counts) {
        return NOT_COUNTED;
    }
    budget::set_limit(bytes);
    OK
}

/// Verifies now every freed block that a quarantine of this process holds: a write to one is reported at once, and not when the
/// block leaves.
///
/// A violation ends the process, as everywhere. Does nothing without a quarantine. The calling thread must hold the GIL, where
/// there is one.
#[unsafe(no_mangle)]
pub extern "C" fn pymem_verify() {
    memdebug::verify_quarantines();
}

/// Draws the heap of mem and obj into the SVG file at `path`, now.
///
/// Returns 0; -1 in a process whose heap cannot be drawn, and for null; -2 when the file cannot be written. The pools of pymalloc can
/// be drawn in every process, mimalloc's heaps in one with `PYMEM_HEAP_MAP`, and nothing without the GIL. The calling thread must hold the GIL, where there is one.
///
/// # Safety
///
/// 1. `path` is null or a text that ends with a NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pymem_heap_map(path: *const c_char) -> c_int {
    // SAFETY: 1: by duty 1.
    let path = unsafe { text(path) }.map(file);
    let service = service::installed().filter(|service| service.serves_all());
    match path.zip(service).and_then(|(path, service)| heap_map::draw_into(path, service.domains)) {
        Some(Ok(())) => OK,
        Some(Err(_)) => NOT_WRITTEN,
        None => NO_MAP,
    }
}

/// Starts a profile of who holds the memory of mem and obj, or lets one that was stopped go on.
///
/// `request` is what `PYMEM_PROFILE` takes: a file, and options after commas. Null is enough where there is a profile already, whose
/// file and options stay. What was allocated before the start is not in the profile; one that goes on has a new peak, and knows what
/// it knew: its blocks that are live, and in its totals all that it ever recorded.
///
/// Returns 0; 1 where it is recorded already, with whatever options, so that it is for whoever began that to stop it; -1, with nothing
/// changed, for null without a profile and for a request that is none; -2 when it cannot be met: the file cannot be written, no
/// interpreter with the GIL is there, or `tracemalloc` traces, which would end the profile by its own end; -3, with nothing changed,
/// for other options than those of a profile that was stopped.
/// The calling thread must hold the GIL.
///
/// # Safety
///
/// 1. `request` is null or a text that ends with a NUL.
/// 2. The calling thread holds the GIL, and no interpreter has another one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pymem_profile_start(request: *const c_char) -> c_int {
    // SAFETY: 1: by duty 1.
    let request = unsafe { text(request) }.map(ProfileRequest::parse).transpose();
    let Ok(request) = request else { return NO_REQUEST };
    if let Some(running) = profile::running() {
        return match running.start_recording(request) {
            Ok(true) => OK,
            Ok(false) => WAS_RECORDING,
            Err(Refusal::OtherProfile) => OTHER_OPTIONS,
            Err(_) => NOT_STARTED,
        };
    }
    let Some(request) = request else { return NO_REQUEST };
    let Some(host) = host() else { return NOT_STARTED };
    let service = service::installed();
    let noted_in = service.map_or(profile::NotedIn::Table, service::Service::noted_in_late);
    // A second interpreter is told of where the pools wait for one.
    let serialized = !host.has_own_gils() || service.is_some_and(service::Service::is_unshared);
    // SAFETY: 1: by duty 2.
    match unsafe { profile::start_late(host, request, noted_in, serialized) } {
        Ok(()) => OK,
        Err(_) => NOT_STARTED,
    }
}

/// Stops recording: what is allocated from now on is not in the profile, and what is in it is still seen to be freed.
///
/// Returns 0; -1 where nothing is profiled. May be called from any thread.
#[unsafe(no_mangle)]
pub extern "C" fn pymem_profile_stop() -> c_int {
    let Some(running) = profile::running() else { return NO_PROFILE };
    running.stop_recording();
    OK
}

/// Writes what the profile knows now into the file at `path`. The ending of the name tells the format; any other ending gives a
/// profile, from which `pymem_report` makes every format.
///
/// Null is the file that was asked for. Returns 0; -1 where nothing is profiled; -2 when the file cannot be written. May be called from
/// any thread.
///
/// # Safety
///
/// 1. `path` is null or a text that ends with a NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pymem_profile_write(path: *const c_char) -> c_int {
    let Some(running) = profile::running() else { return NO_PROFILE };
    // SAFETY: 1: by duty 1.
    let written = match unsafe { text(path) } {
        Some(path) => running.write_into(file(path)),
        None => running.write_into(&running.path()),
    };
    if written.is_ok() { OK } else { NOT_WRITTEN }
}

/// Calls `work` with `data`, and records nothing of what this thread allocates in the call: for tools that would find themselves in
/// the profile.
///
/// Returns 0; -1 for null, with nothing called. `work` is called where nothing is profiled too. May be called from any thread.
///
/// # Safety
///
/// 1. `work` is null or a function that takes `data`, and returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pymem_profile_unrecorded(
    work: Option<unsafe extern "C" fn(data: *mut c_void)>,
    data: *mut c_void,
) -> c_int {
    let Some(work) = work else { return NO_WORK };
    // SAFETY: 1: by duty 1.
    heap_profile::unrecorded(|| unsafe { work(data) });
    OK
}

/// Tells the stack that allocated the live block at `block`, innermost call first: `told` gets `data` and, of each call, the names of its
/// function and its file, which last for that call of `told`, and its line.
///
/// Returns how many calls were told, 0 for a block that was allocated while no Python code ran; -1 where nothing is profiled; -2,
/// with nothing told, for null and for an address at which no block begins that the profile knows: the block was allocated before
/// the profile began, a sampled profile has not chosen it, or a row without pools was profiled from its start. Of an address inside
/// a block any stack may be told. The calling thread must hold the GIL.
///
/// # Safety
///
/// 1. `told` takes these arguments, and returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pymem_profile_traceback(
    block: *const c_void,
    told: unsafe extern "C" fn(
        data: *mut c_void,
        function: *const c_char,
        file: *const c_char,
        line: c_uint,
    ),
    data: *mut c_void,
) -> c_int {
    let Some(running) = profile::running() else { return NO_PROFILE };
    let block = NonNull::new(block.cast_mut().cast());
    let Some(stack) = block.and_then(|block| running.traceback_of(block)) else { return NO_BLOCK };
    let text = |name: &str| CString::new(name).unwrap_or_default();
    for call in stack.iter() {
        let (function, file) = (text(&call.function), text(&call.file));
        // SAFETY: by duty 1.
        unsafe { told(data, function.as_ptr(), file.as_ptr(), call.line) };
    }
    c_int::try_from(stack.len()).unwrap_or(c_int::MAX)
}

/// Draws the profile in the file at `path` into the file at `out`, in `format`: `json`, `table`, `collapsed`, `speedscope`, `html`, `lines`,
/// `pprof`.
///
/// A null `out` is the standard output; a null `format` is the one that the name of `out` tells. `before`, where it is not null, is the
/// file of an older profile: what is drawn is then by how much each stack holds more than in that one.
///
/// Returns 0; -1 for an unknown format and a null `path`; -2 when the output cannot be written; -3 when a file is no profile or cannot be
/// read. What is wrong is said in one line on stderr. May be called from any thread.
///
/// # Safety
///
/// 1. Each argument is null or a text that ends with a NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pymem_report(
    path: *const c_char,
    format: *const c_char,
    out: *const c_char,
    before: *const c_char,
) -> c_int {
    // SAFETY: 1: by duty 1.
    let [path, format, out, before] = [path, format, out, before].map(|word| unsafe { text(word) });
    let Some(path) = path else { return NO_FORMAT };
    match profile_report::report(file(path), format, out.map(file), before.map(file)) {
        Ok(()) => OK,
        Err(error) => {
            error.say();
            match error {
                ReportError::Format(_) => NO_FORMAT,
                ReportError::Write(..) => NOT_WRITTEN,
                ReportError::Open(..) | ReportError::Read(..) => NOT_READ,
            }
        }
    }
}

/// What a replay measured. Sizes are in bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct PymemReplay {
    /// Calls that were made.
    pub calls: usize,
    /// Threads that the program had; its calls were replayed on one, in their order. 0 where the file does not tell.
    pub threads: usize,
    /// Calls that the program made after its log had reached its limit, or could not grow.
    pub dropped: usize,
    /// Frees of blocks that the log had not seen made, and that were left out.
    pub unknown_blocks: usize,
    /// Blocks whose end the log had not seen, and that were freed where their address came again.
    pub unseen_frees: usize,
    /// The time of all calls, in the fastest of three passes.
    pub nanoseconds: usize,
    /// By how much resident memory had grown at most, in the first pass.
    pub peak_bytes: usize,
    /// By how much it had grown at the end, with what the program leaves live.
    pub end_bytes: usize,
}

/// Replays the trace or call log at `path` on the row `name`, one of CPython's `PYTHONMALLOC` names, beside whatever serves this
/// process, and stores in `out` what that took.
///
/// A row's memory is told rightly by the first call of a process for it alone: each call makes a set of domains that lasts as long as
/// the process. Returns 0; -1 for an unknown name and a null argument; -3 when the file is no recording or cannot be read; -4 when the
/// memory does not suffice. What is wrong is said in one line on stderr.
///
/// # Safety
///
/// 1. `path` and `name` are null, or texts that end with a NUL.
/// 2. `out` is null or points to a writable result.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pymem_replay(
    path: *const c_char,
    name: *const c_char,
    out: *mut PymemReplay,
) -> c_int {
    // SAFETY: 1: by duty 1.
    let words = [path, name].map(|word| unsafe { text(word) });
    let ([Some(path), Some(name)], false) = (words, out.is_null()) else { return UNKNOWN_NAME };
    match replay::replay(file(path), &String::from_utf8_lossy(name)) {
        Ok(found) => {
            // SAFETY: by duty 2, and not null.
            unsafe { out.write(PymemReplay::new(&found)) };
            OK
        }
        Err(error) => {
            error.say();
            match error {
                ReplayError::Name(_) | ReplayError::Row(_) => UNKNOWN_NAME,
                ReplayError::Open(..) | ReplayError::Read(..) => NOT_READ,
                ReplayError::Memory(_) => NO_MEMORY,
            }
        }
    }
}

impl PymemReplay {
    fn new(found: &Replayed) -> Self {
        let (head, unread) = found.recording.log.unzip();
        let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        Self {
            calls: found.calls,
            threads: head.map_or(0, |head| head.threads.into()),
            dropped: head.map_or(0, |head| count(head.dropped)),
            unknown_blocks: unread.map_or(0, |unread| count(unread.unknown_blocks)),
            unseen_frees: unread.map_or(0, |unread| count(unread.unseen_frees)),
            nanoseconds: found.fastest.as_nanos().try_into().unwrap_or(usize::MAX),
            peak_bytes: found.peak,
            end_bytes: found.end,
        }
    }
}

/// The bytes of a text; `None` for null.
///
/// # Safety
///
/// 1. `text` is null, or ends with a NUL and lives as long as the result is used.
unsafe fn text<'a>(text: *const c_char) -> Option<&'a [u8]> {
    // SAFETY: by duty 1.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_bytes())
}

fn file(name: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(name))
}

/// Writes what is served, and how much of it, as one JSON object into `buf`, with a closing NUL.
///
/// Returns the length in bytes without the NUL, which may be more than fits in `len` bytes: then the text is cut, as by
/// `snprintf`; -1 when it cannot be made. Null `buf` or 0 `len` only asks for the length. `installed` is false, and
/// nothing else is there, where nothing is installed. Counts of calls are there only when a report at exit or a limit was asked for.
/// The calling thread must hold the GIL, where there is one.
///
/// # Safety
///
/// 1. `buf` is null or points to `len` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pymem_stats_json(buf: *mut c_char, len: usize) -> c_int {
    let Some(text) = report::json() else { return -1 };
    if !buf.is_null() && len > 0 {
        let count = text.len().min(len - 1);
        // SAFETY: `count` bytes of the text, to fewer than `len` bytes that the caller owns (duty 1).
        unsafe { buf.copy_from_nonoverlapping(text.as_ptr().cast(), count) };
        // SAFETY: `count < len`.
        let end = unsafe { buf.add(count) };
        // SAFETY: within the buffer, as above.
        unsafe { end.write(0) };
    }
    c_int::try_from(text.len()).unwrap_or(-1)
}
