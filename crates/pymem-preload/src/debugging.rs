//! Owns what the debug hooks get from the interpreter: the GIL check, its fatal error, and `tracemalloc`'s tracebacks.
//! Leaves the checks and the text of a report to `memdebug`.

use core::ffi::CStr;
use std::ffi::CString;
use std::sync::OnceLock;

use memdebug::{FrameSink, Host as HooksHost, Options, Tracing, Violation, handler};
use pymem_domains::DebugConfig;

use crate::capi::{PyObject, TraceApi};
use crate::host::host;

/// The hooks' configuration in a Python host.
pub(crate) fn config(options: Options) -> DebugConfig {
    let hooks = HooksHost::new()
        .with_thread_check(gil_held)
        .with_handler(fatal)
        .with_traceback(allocation_traceback);
    DebugConfig::new().with_host(hooks).with_options(options)
}

/// Whether the calling thread may use mem and obj.
fn gil_held() -> bool {
    // SAFETY: `PyGILState_Check` may be called at any time from any thread.
    host().is_none_or(|host| unsafe { (host.api.gil_check)() } != 0)
}

/// Dumps the block and ends the process through the host, whose report goes on with the Python traceback.
fn fatal(violation: &Violation) {
    handler::dump(violation);
    let Some(host) = host() else { return handler::abort(violation) };
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

/// Where the host's `tracemalloc` saw the block at `address` allocated.
///
/// The answer is made of Python objects, as in the interpreter's own report; so it is only asked for by a thread that may
/// make some.
fn allocation_traceback(address: usize, frames: &mut dyn FrameSink) -> Tracing {
    static API: OnceLock<Option<TraceApi>> = OnceLock::new();
    let Some(api) = API.get_or_init(TraceApi::find) else { return Tracing::Off };
    if !host().is_some_and(|host| host.is_initialized()) || !gil_held() {
        return Tracing::Off;
    }
    // SAFETY: takes any numbers, from any thread that holds the GIL.
    if unsafe { (api.untrack)(NO_DOMAIN, address) } == TRACING_IS_OFF {
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
    if object.is_null() {
        // SAFETY: the thread holds the GIL (duty 1).
        unsafe { (api.clear_error)() };
        return None;
    }
    // SAFETY: a live object (duty 1); anything but a tuple gives -1 with an exception set.
    let size = unsafe { (api.tuple_size)(object) };
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
