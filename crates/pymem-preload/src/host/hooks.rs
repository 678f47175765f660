//! Owns what the debug hooks get from the interpreter: its fatal error and `tracemalloc`'s tracebacks.
//! Leaves the GIL check to `gil.rs`, the thread's own frames to `python_stacks.rs`, the checks and the text of a report to
//! `memdebug`.

use core::cell::Cell;
use core::ffi::CStr;
use core::ptr::NonNull;
use std::ffi::CString;
use std::sync::OnceLock;

use memdebug::{
    ConfigureError, DebugOffset, FrameSink, GuardSampler, Host as HooksHost, Options, Tracing,
    Violation, handler,
};
use pymem_domains::{AllocatorRecord, Build, DebugConfig, Domain, hooks_over};

use crate::host::capi::{PyObject, TraceApi};
use crate::host::python::{Host, host};
use crate::host::{gil, python_stacks};

/// The first minor version whose build without the GIL asks for a thread state by name.
const FIRST_WITH_STATE_MESSAGE: u32 = 14;

/// What the hooks get from a Python host; without one there is no thread rule.
fn hooks_host() -> HooksHost {
    let hooks_host = HooksHost::new()
        .with_handler(fatal)
        .with_traceback(allocation_traceback)
        .with_stacks(&python_stacks::HOOKS);
    let Some(host) = host() else { return hooks_host };
    let message = match host.build {
        Build::FreeThreaded if host.minor >= FIRST_WITH_STATE_MESSAGE => {
            HooksHost::WITHOUT_THREAD_STATE
        }
        Build::FreeThreaded | Build::Gil => HooksHost::WITHOUT_GIL,
    };
    let hooks_host =
        hooks_host.with_thread_check(gil::thread_check(host)).with_thread_message(message);
    match gil::thread_word(host) {
        Some(word) => hooks_host.with_thread_word(word),
        None => hooks_host,
    }
}

/// Makes ready for faults of the checks, and for blocks that the program gives to C's `free`. Without it a wild pointer faults in
/// the middle of its own report, as it does in CPython, and such a block is not named; so no error is lost.
pub(crate) fn watch_signals() {
    let _ = memdebug::report_blocks_given_to_c(hooks_host());
}

/// What the hooks get where these options are on.
fn host_of(options: &Options) -> HooksHost {
    if options.go_on { hooks_host().with_handler(handler::report) } else { hooks_host() }
}

/// The hooks' configuration in a Python host.
pub(crate) fn config(options: Options) -> DebugConfig {
    DebugConfig::new().with_host(host_of(&options)).with_options(options)
}

/// Hooks over a free-threaded host's own record of `domain`, mem or obj.
///
/// # Errors
///
/// Options that cannot be had.
pub(crate) fn over_hosts(
    domain: Domain,
    record: AllocatorRecord,
    mut options: Options,
) -> Result<AllocatorRecord, ConfigureError> {
    let front: DebugOffset = match domain {
        Domain::Obj => {
            // The collector finds every block that the host's heaps hold: one that is kept back would be an object to it.
            options.quarantine = None;
            options.guard = None;
            unfilled_front
        }
        Domain::Mem | Domain::Raw => filled_whole,
    };
    hooks_over(record, domain, host_of(&options).with_debug_offset(front), &options)
}

/// A sampler of guard pages over a free-threaded host's own record of mem. Objects have none: its collector finds them by
/// walking its heaps, and readers without a lock look at freed ones.
///
/// # Errors
///
/// Guard pages that cannot be had.
pub(crate) fn sampler_over_hosts(
    record: AllocatorRecord,
    options: Options,
) -> Result<AllocatorRecord, ConfigureError> {
    let sampler = GuardSampler::new(record, Domain::Mem).with_host(host_of(&options));
    Ok(AllocatorRecord::leak(sampler.with_options(&options)?))
}

/// Bytes of an object's head, in a free-threaded build, that readers without a lock may still look at.
const HEAD_BYTES: usize = 24;
/// The whole of an object's header there: the head and the type.
const HEADER_BYTES: usize = 32;
/// What stands before the header of an object with a managed dictionary or weak references.
const PRE_HEADER_BYTES: usize = 16;

/// How much of the front of an obj block the hooks leave alone, their own header included.
///
/// The host knows the kind of an object by its heap and asks no one else. A block too small for an object with a
/// pre-header has none, and is filled from the type on; any other keeps both possible heads.
fn unfilled_front(freed: Option<NonNull<u8>>) -> usize {
    let size = freed.map(|base| {
        // SAFETY: the start of a block that the hooks have verified: its size, with the highest byte first.
        u64::from_be_bytes(unsafe { base.cast::<[u8; 8]>().read() })
    });
    let pre_header = match size {
        Some(size) if size < (PRE_HEADER_BYTES + HEADER_BYTES) as u64 => 0,
        _ => PRE_HEADER_BYTES,
    };
    memdebug::HEADER_BYTES + pre_header + HEAD_BYTES
}

/// The front of a mem or raw block that is left alone: the hooks' own header. That the host has the rules of the build without a
/// GIL is told by this: `realloc` erases nothing.
fn filled_whole(_freed: Option<NonNull<u8>>) -> usize {
    memdebug::HEADER_BYTES
}

thread_local! {
    /// This thread ends the process.
    static IS_ENDING: Cell<bool> = const { Cell::new(false) };
}

/// Dumps the block and ends the process through the host, whose report goes on with the Python traceback.
///
/// What the host does meanwhile is not reported: up to 3.9 it frees blocks then, with the GIL or without.
fn fatal(violation: &Violation) {
    if IS_ENDING.replace(true) {
        return;
    }
    let Some(host) = host() else { return handler::abort(violation) };
    handler::dump(violation);
    // The host writes the rest, its traceback too, to standard error.
    // SAFETY: open descriptors; the process is about to end.
    unsafe { libc::dup2(handler::target(), libc::STDERR_FILENO) };
    // The names of functions are constants without a NUL.
    let func = CString::new(violation.func()).unwrap_or_default();
    let message = violation.message();
    host.fatal_error(&func, message.as_c_str())
}

/// The domain of `tracemalloc` that the interpreter's own hooks use.
const TRACE_DOMAIN: core::ffi::c_uint = 0;
/// A domain that nobody uses: whether `Untrack` in it succeeds tells whether the host is tracing.
const NO_DOMAIN: core::ffi::c_uint = 0x7079_6d65;
/// What `PyTraceMalloc_Untrack` answers while tracing is off.
const TRACING_IS_OFF: core::ffi::c_int = -2;

fn trace_api() -> Option<&'static TraceApi> {
    static API: OnceLock<Option<TraceApi>> = OnceLock::new();
    API.get_or_init(TraceApi::find).as_ref()
}

/// Whether the host's `tracemalloc` traces.
///
/// # Safety
///
/// 1. The calling thread holds the GIL.
pub(crate) unsafe fn is_tracing() -> bool {
    // SAFETY: takes any numbers, from any thread that holds the GIL (duty 1).
    let answer = |api: &TraceApi| unsafe { (api.untrack)(NO_DOMAIN, 0) };
    trace_api().is_some_and(|api| answer(api) != TRACING_IS_OFF)
}

/// Where the host's `tracemalloc` saw the block at `address` allocated.
///
/// The answer is made of Python objects, as in the interpreter's own report; so it is only asked for by a thread that may
/// make some.
fn allocation_traceback(address: usize, frames: &mut dyn FrameSink) -> Tracing {
    let Some(api) = trace_api() else { return Tracing::Off };
    if !host().is_some_and(Host::is_initialized) || gil::own_state().is_none() {
        return Tracing::Off;
    }
    // SAFETY: 1: it has a state of its own.
    if !unsafe { is_tracing() } {
        return Tracing::Off;
    }
    // SAFETY: takes any numbers; the thread holds the GIL and the host is initialized.
    let traceback = unsafe { (api.get_traceback)(TRACE_DOMAIN, address) };
    // SAFETY: 1: null or an object that nobody else gives up; it is not given back, as the process is about to end.
    let count = unsafe { tuple_size(api, traceback) };
    let Some(count) = count else { return Tracing::Unknown };
    for index in 0..count {
        // SAFETY: an index within a tuple; the item is borrowed from it.
        let frame = unsafe { (api.tuple_get_item)(traceback, index) };
        // SAFETY: 1: an item of a live tuple.
        if let Some((file, line)) = unsafe { frame_of(api, frame) } {
            frames.frame(file, line, None);
        }
    }
    Tracing::Known
}

/// The length of a tuple; `None` for null and for any other object.
///
/// # Safety
///
/// 1. `object` is null or a live object, and the calling thread holds the GIL.
unsafe fn tuple_size(api: &TraceApi, object: *mut PyObject) -> Option<isize> {
    // SAFETY: a live object (duty 1); anything but a tuple gives -1 with an exception set.
    let size = if object.is_null() { -1 } else { unsafe { (api.tuple_size)(object) } };
    if size < 0 {
        // SAFETY: the thread holds the GIL (duty 1).
        unsafe { (api.clear_error)() };
        return None;
    }
    Some(size)
}

/// File and line of a frame, a tuple of both.
///
/// # Safety
///
/// 1. `frame` is null or a live object, and the calling thread holds the GIL.
unsafe fn frame_of<'a>(api: &TraceApi, frame: *mut PyObject) -> Option<(&'a str, u32)> {
    // SAFETY: 1: by duty 1.
    if unsafe { tuple_size(api, frame) }? < 2 {
        return None;
    }
    // SAFETY: an index within a tuple.
    let file = unsafe { (api.tuple_get_item)(frame, 0) };
    // SAFETY: a text object, or anything else, which gives null with an exception set.
    let text = unsafe { (api.unicode_as_utf8)(file, core::ptr::null_mut()) };
    if text.is_null() {
        // SAFETY: the thread holds the GIL (duty 1).
        unsafe { (api.clear_error)() };
        return None;
    }
    // SAFETY: it ends with a NUL and lives as long as the file's name, which is never given back.
    let text = unsafe { CStr::from_ptr(text) }.to_str().ok()?;
    // SAFETY: an index within a tuple.
    let line = unsafe { (api.tuple_get_item)(frame, 1) };
    // SAFETY: a number object, or anything else, which gives -1.
    let line = unsafe { (api.long_as_long)(line) };
    Some((text, u32::try_from(line).unwrap_or(0)))
}
