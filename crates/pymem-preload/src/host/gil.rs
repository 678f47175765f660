//! Owns the question whether the calling thread holds the GIL, asked on every call of mem and obj in a debug configuration.
//!
//! The full answer is the host's `PyGILState_Check`, which is long: the check is a function pointer that the hooks call,
//! and most answers are shorter. Where the word with the current thread state can be found, the hooks read it themselves,
//! by the same rules, and call the check only when it has changed.
//!
//! - Since 3.12 the current thread state is the calling thread's own: one that has any holds the GIL, or is attached
//!   where there is none. A thread without one is asked in full.
//! - Before, the current thread state is the process's. The thread that last passed the full check, and the state it had,
//!   are kept in one word: as long as both are the same, that thread still holds the GIL, or another one runs with its
//!   state, or at its address. Both break the host's rules, or need a call without the GIL just while a thread runs that was
//!   started after the last check.

use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering::Relaxed};

use memdebug::{ThreadCheck, ThreadWord};
use pymem_domains::Build;

use crate::host::capi::{PublicThreadStateApi, PyThreadState, ThreadStateApi};
use crate::host::python::{Host, host};
use crate::host::state_word::{self, Current, Keeps};
use crate::host::this_thread;

/// The first minor version in which each thread has a current thread state of its own.
const FIRST_WITH_OWN_STATE: u32 = 12;

/// A [`Current`]: the host's, and before [`thread_check`] one that knows no state.
static CURRENT: AtomicPtr<()> = AtomicPtr::new(no_state as *mut ());

unsafe extern "C" fn no_state() -> *mut PyThreadState {
    ptr::null_mut()
}

/// The check for the threads of `host`.
pub(crate) fn thread_check(host: &Host) -> ThreadCheck {
    let Some(current) = current_function() else { return full_check };
    CURRENT.store(current as *mut (), Relaxed);
    if host.minor >= FIRST_WITH_OWN_STATE { is_attached } else { is_last_that_passed }
}

/// Whether the host was loaded with the program.
static IN_PROGRAM: AtomicBool = AtomicBool::new(false);

/// Takes note that the host was loaded with the program, and not by it later.
///
/// # Safety
///
/// 1. So it was: no thread has been started since that might have been given less room for its own words.
pub(crate) unsafe fn host_is_in_program() {
    IN_PROGRAM.store(true, Relaxed);
}

/// The word by which the hooks see that a thread passes again, if it is known.
///
/// A host without a GIL has none: there threads run side by side, and what one of them passed by says nothing of the others.
pub(crate) fn thread_word(host: &Host) -> Option<ThreadWord> {
    if host.build == Build::FreeThreaded || !IN_PROGRAM.load(Relaxed) {
        return None;
    }
    let keeps = if host.minor >= FIRST_WITH_OWN_STATE { Keeps::OfThread } else { Keeps::OfProcess };
    // SAFETY: 1: by the host's version. 2: by duty 1 of `host_is_in_program`.
    unsafe { state_word::find(current_function()?, keeps) }
}

/// The host's function for the current thread state.
fn current_function() -> Option<Current> {
    PublicThreadStateApi::find()
        .map(|api| api.current)
        .or_else(|| ThreadStateApi::find().map(|api| api.current))
}

/// The host's current thread state; null without one, and before [`thread_check`].
#[inline]
pub(crate) fn current() -> *mut PyThreadState {
    // SAFETY: only functions of this type are stored.
    let current: Current = unsafe { core::mem::transmute(CURRENT.load(Relaxed)) };
    // SAFETY: may be called at any time from any thread; it reads one pointer.
    unsafe { current() }
}

/// The check where each thread has its own state.
fn is_attached() -> bool {
    !current().is_null() || full_check()
}

/// The check where the state is the process's.
fn is_last_that_passed() -> bool {
    /// The last thread that passed and its state; 0 before.
    static PASSED: AtomicUsize = AtomicUsize::new(0);
    let state = current();
    if state.is_null() {
        return full_check();
    }
    // Addresses of states differ in their low 47 bits, and the turned ones of threads in their high bits.
    let both = state.addr().wrapping_add(this_thread::id().rotate_left(usize::BITS / 2));
    if PASSED.load(Relaxed) == both {
        return true;
    }
    let held = full_check();
    if held {
        PASSED.store(both, Relaxed);
    }
    held
}

/// Whether the calling thread may use mem and obj, by the host's own check.
#[cold]
pub(crate) fn full_check() -> bool {
    // SAFETY: `PyGILState_Check` may be called at any time from any thread.
    host().is_none_or(|host| unsafe { (host.api.gil_check)() } != 0)
}
