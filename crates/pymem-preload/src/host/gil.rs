//! Owns the question whether the calling thread may use the interpreter: it holds the GIL, or is attached where there is
//! none. The debug hooks ask it on every call of mem and obj.
//!
//! The host's own answer, `PyGILState_Check`, is always yes once a subinterpreter was made, so it decides nothing alone.
//! What decides is the current thread state. The hooks read the word that holds it, where that can be found, and call the
//! check only when the word has changed.
//!
//! - Since 3.12 the current state is the calling thread's own: a thread that has one may call.
//! - Before, the current state is the process's. The thread that last passed the full check, and the state it had, are
//!   kept in one word: as long as both are the same, that thread still holds the GIL, or another one runs with its
//!   state, or at its address. Both break the host's rules, or need a call without the GIL just while a thread runs that
//!   was started after the last check.

use core::ffi::CStr;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering::Relaxed};

use memdebug::{ThreadCheck, ThreadWord, thread_pointer};
use pymem_domains::Build;

use crate::host::capi::{PyThreadState, symbol};
use crate::host::python::{Host, host};
use crate::host::state_word::{self, Keeps, StateFunction};

/// The first minor version in which each thread has a current thread state of its own.
const FIRST_WITH_OWN_STATE: u32 = 12;

/// The host's function for the current thread state; before [`thread_check`] one that knows no state.
static CURRENT: AtomicPtr<()> = AtomicPtr::new(no_state as *mut ());
/// The host's function for the state that belongs to the calling thread; likewise.
static OWN: AtomicPtr<()> = AtomicPtr::new(no_state as *mut ());

unsafe extern "C" fn no_state() -> *mut PyThreadState {
    ptr::null_mut()
}

/// The check for the threads of `host`.
pub(crate) fn thread_check(host: &Host) -> ThreadCheck {
    let Some(current) = current_function() else { return hosts_check };
    CURRENT.store(current as *mut (), Relaxed);
    if host.minor >= FIRST_WITH_OWN_STATE {
        OWN.store(current as *mut (), Relaxed);
        return is_attached;
    }
    if let Some(own) = function(c"PyGILState_GetThisThreadState") {
        OWN.store(own as *mut (), Relaxed);
    }
    is_last_that_passed
}

/// Whether the host was loaded with the program.
static IN_PROGRAM: AtomicBool = AtomicBool::new(false);

/// Takes note that the host was loaded with the program, and not by it later.
///
/// # Safety
///
/// 1. The host was loaded with the program, and no thread has been started that might have less room for its own words.
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

/// The word that holds the calling thread's own and current state, or 0; `None` where it is not known, or the process has one for all
/// threads.
pub(crate) fn own_word(host: &Host) -> Option<ThreadWord> {
    thread_word(host).filter(|_| host.minor >= FIRST_WITH_OWN_STATE)
}

/// The host's function for the current thread state, which has a public name since 3.13.
fn current_function() -> Option<StateFunction> {
    function(c"PyThreadState_GetUnchecked").or_else(|| function(c"_PyThreadState_UncheckedGet"))
}

/// The host's function of this name, one of those that give a thread state or null.
fn function(name: &CStr) -> Option<StateFunction> {
    // SAFETY: 1: a function of CPython with this signature, in every version that exports it.
    unsafe { symbol(name) }
}

/// The thread state that `function` gives: [`CURRENT`] or [`OWN`].
#[inline]
fn state_by(function: &AtomicPtr<()>) -> *mut PyThreadState {
    // SAFETY: only functions of this type are stored.
    let function: StateFunction = unsafe { core::mem::transmute(function.load(Relaxed)) };
    // SAFETY: may be called at any time from any thread; it reads one pointer.
    unsafe { function() }
}

/// The calling thread's state, if it is the current one: such a thread may call the interpreter and read its state.
///
/// `None` before [`thread_check`], and before 3.12 also for a thread that runs in a subinterpreter that it did not enter
/// first: there the current state cannot be told from that of another thread.
pub(crate) fn own_state() -> Option<NonNull<PyThreadState>> {
    let state = NonNull::new(state_by(&CURRENT))?;
    ptr::eq(state.as_ptr(), state_by(&OWN)).then_some(state)
}

/// The check where each thread has its own state.
fn is_attached() -> bool {
    !state_by(&CURRENT).is_null() || is_not_running()
}

/// The check where the state is the process's.
fn is_last_that_passed() -> bool {
    /// The last thread that passed and its state; 0 before.
    static PASSED: AtomicUsize = AtomicUsize::new(0);
    let state = state_by(&CURRENT);
    if state.is_null() {
        return is_not_running();
    }
    // Addresses of states differ in their low 47 bits, and the turned ones of threads in their high bits.
    let both = state.addr().wrapping_add(thread_pointer().rotate_left(usize::BITS / 2));
    if PASSED.load(Relaxed) == both {
        return true;
    }
    let held = hosts_check();
    if held {
        PASSED.store(both, Relaxed);
    }
    held
}

/// Whether there is no thread state since the interpreter starts or ends: the host then has no rule for threads.
#[cold]
fn is_not_running() -> bool {
    host().is_none_or(|host| !host.is_initialized() && hosts_check())
}

/// Whether the calling thread may use mem and obj, by the host's own check.
#[cold]
fn hosts_check() -> bool {
    // SAFETY: `PyGILState_Check` may be called at any time from any thread.
    host().is_none_or(|host| unsafe { (host.api.gil_check)() } != 0)
}
