//! Owns the end of start-up: the moment at which the interpreter begins to run the program that it was started for.
//!
//! The interpreter tells it as an event of its audit, `cpython.run_command` and its kin, after `site` was imported. An
//! embedder that runs its programs by other functions has no such event.

use core::ffi::{CStr, c_char, c_int, c_void};
use core::ptr;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::host::capi::{PyObject, symbol};

/// What all events of this kind begin with.
const RUN: &[u8] = b"cpython.run_";

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
    static IS_DONE: AtomicBool = AtomicBool::new(false);
    if !IS_DONE.load(Relaxed) {
        // SAFETY: the interpreter passes a name that ends with a NUL.
        let event = unsafe { CStr::from_ptr(event) };
        if event.to_bytes().starts_with(RUN) && !IS_DONE.swap(true, Relaxed) {
            memdebug::leaks_baseline();
        }
    }
    0
}
