//! Owns the end of start-up: the moment at which the interpreter begins to run the program that it was started for.
//!
//! The interpreter tells it as events of its audit: `cpython.run_command` and its kin, after `site` was imported; then, of a command
//! or a file, `exec` outside of any frame. From 3.13 on it imports a module between the two. An embedder that runs its programs
//! by other functions has no such event.

use core::ffi::{CStr, c_char, c_int, c_void};
use core::ptr;
use core::sync::atomic::{AtomicU8, Ordering::Relaxed};

use crate::host::capi::{PyObject, symbol};

/// What all events of this kind begin with.
const RUN: &[u8] = b"cpython.run_";
const RUN_MODULE: &[u8] = b"cpython.run_module";

/// Has the blocks that are live at the end of start-up left out of the reports of leaks. Without the function, or memory for
/// it, every block counts.
///
/// # Safety
///
/// 1. The host is not initialized, and no other thread uses it.
pub(crate) unsafe fn set_leaks_baseline() {
    type AuditHook = unsafe extern "C" fn(*const c_char, *mut PyObject, *mut c_void) -> c_int;
    type AddAuditHook = unsafe extern "C" fn(AuditHook, *mut c_void) -> c_int;
    // SAFETY: 1: a function of CPython with this signature, in every version that exports it.
    if let Some(add_audit_hook) = unsafe { symbol::<AddAuditHook>(c"PySys_AddAuditHook") } {
        // SAFETY: the host takes hooks before it is initialized (duty 1); this one keeps to its rules.
        unsafe { add_audit_hook(on_event, ptr::null_mut()) };
    }
}

unsafe extern "C" fn on_event(event: *const c_char, _: *mut PyObject, _: *mut c_void) -> c_int {
    /// What is waited for.
    static NEXT: AtomicU8 = AtomicU8::new(TO_START);
    if NEXT.load(Relaxed) == HAS_STARTED {
        return 0;
    }
    // SAFETY: the interpreter passes a name that ends with a NUL.
    let event = unsafe { CStr::from_ptr(event) }.to_bytes();
    if event.starts_with(RUN) && NEXT.load(Relaxed) == TO_START {
        // A module is run by code of Python.
        NEXT.store(if event == RUN_MODULE { HAS_STARTED } else { TO_EXECUTE }, Relaxed);
        memdebug::leaks_baseline();
    }
    if event == b"exec" && NEXT.load(Relaxed) == TO_EXECUTE && has_no_frame() {
        NEXT.store(HAS_STARTED, Relaxed);
        memdebug::leaks_baseline();
    }
    0
}

const TO_START: u8 = 0;
const TO_EXECUTE: u8 = 1;
const HAS_STARTED: u8 = 2;

/// Whether the calling thread, which holds the GIL, runs no code of Python.
fn has_no_frame() -> bool {
    type GetFrame = unsafe extern "C" fn() -> *mut PyObject;
    // SAFETY: 1: a function of CPython with this signature, in every version.
    let get_frame = unsafe { symbol::<GetFrame>(c"PyEval_GetFrame") };
    // SAFETY: the thread holds the GIL, as an event of the audit comes with it.
    get_frame.is_some_and(|get_frame| unsafe { get_frame() }.is_null())
}
