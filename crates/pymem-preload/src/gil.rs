//! Owns the question whether the calling thread holds the GIL, asked on every call of mem and obj in a debug configuration.
//!
//! The full answer is the host's `PyGILState_Check`. A thread keeps the thread state with which it last passed that check:
//! as long as the host's current state is this one, the thread still holds the GIL, or another thread runs with the same
//! state, or the state was deleted and a new one has its address. The last two break the host's own rules or need a thread
//! that calls without the GIL just while its successor at that address runs; they are all that the short answer misses.
//! A thread that has given the GIL up finds no current state, or another thread's, and is asked in full.

use core::cell::Cell;
use core::ptr;
use std::sync::OnceLock;

use crate::capi::{PublicThreadStateApi, PyThreadState, ThreadStateApi};
use crate::host::host;

type Current = unsafe extern "C" fn() -> *mut PyThreadState;

thread_local! {
    /// The thread state with which this thread last passed the full check; null before.
    static PASSED: Cell<*mut PyThreadState> = const { Cell::new(ptr::null_mut()) };
}

/// Whether the calling thread may use mem and obj.
pub(crate) fn gil_held() -> bool {
    let Some(current) = current_function() else { return full_check() };
    // SAFETY: may be called at any time from any thread; it reads one pointer.
    let current = unsafe { current() };
    if !current.is_null() && PASSED.try_with(Cell::get) == Ok(current) {
        return true;
    }
    let held = full_check();
    if held {
        // A thread past its end is asked in full each time.
        let _ = PASSED.try_with(|passed| passed.set(current));
    }
    held
}

fn current_function() -> Option<Current> {
    static CURRENT: OnceLock<Option<Current>> = OnceLock::new();
    *CURRENT.get_or_init(|| {
        PublicThreadStateApi::find()
            .map(|api| api.current)
            .or_else(|| ThreadStateApi::find().map(|api| api.current))
    })
}

#[cold]
fn full_check() -> bool {
    // SAFETY: `PyGILState_Check` may be called at any time from any thread.
    host().is_none_or(|host| unsafe { (host.api.gil_check)() } != 0)
}
