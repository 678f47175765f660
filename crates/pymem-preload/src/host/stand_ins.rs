//! Owns the functions of others that this library stands in for, in every program that it is preloaded into: `sigaction`,
//! `_exit` and `setlocale` of the C library, the interpreter's name of what serves it, and the two functions by which extensions report
//! memory of their own. What is not ours goes to the function behind it.
//!
//! If `faulthandler` replaced the hooks' handler of memory faults, it would raise a fault again instead of handing it on, and
//! the hooks could not tell that fault from a signal that was sent: a report would be lost in every thread but the main one,
//! and a process would survive a signal that should end it.
//!
//! Python's `os._exit` and the children of `multiprocessing` end by `_exit`, which runs no handlers: a profile and a file of
//! statistics are written first.
//!
//! An interpreter asks for the locale before it reads its configuration and keeps its first block: the moment to serve one that
//! the program has brought since its start. (A stand-in for `dlopen` would not do: the loader looks up paths by its caller.)
//!
//! Extensions such as numpy allocate from the C library, and tell `tracemalloc`: a profile listens.
//!
//! An interpreter names its allocators by comparing records with its own, and has no name for ours. A program comes before
//! preloaded libraries: the stand-ins for the interpreter's functions are found by modules of interpreters with a shared `libpython`
//! alone.

use core::ffi::{c_char, c_int, c_uint};
use core::ptr;

use crate::host::behind::{Behind, SET_LOCALE, SIGACTION, SetLocale, Sigaction};
use crate::host::deadline;
use crate::load;
use crate::observe::{profile, report};
use crate::service;

/// The C library's `sigaction`; the handlers of memory faults that a program installs come after the debug hooks' handler,
/// and not instead of it.
///
/// # Safety
///
/// 1. As `sigaction`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sigaction(
    signal: c_int,
    new: *const libc::sigaction,
    old: *mut libc::sigaction,
) -> c_int {
    // SAFETY: 1 and 2: by duty 1.
    if unsafe { memdebug::chain_handler(signal, new, old) } {
        return 0;
    }
    // SAFETY: 1: the C library's type.
    let Some(next) = (unsafe { SIGACTION.find::<Sigaction>() }) else { return -1 };
    // SAFETY: by duty 1.
    unsafe { next(signal, new, old) }
}

type Exit = unsafe extern "C" fn(c_int) -> !;

/// Seconds in which what a process tells at its end must be written, where it ends by `_exit`.
const TELLS_WITHIN: u32 = 10;

/// The C library's `_exit`, which writes a profile and a file of statistics first.
///
/// A signal handler may end the process so in the middle of a call that holds a lock: what waits for that is given up after 10 seconds.
///
/// # Safety
///
/// 1. As `_exit`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn _exit(status: c_int) -> ! {
    static BEHIND: Behind = Behind::new(c"_exit");
    if profile::is_due() || report::is_due() {
        deadline::end_within(TELLS_WITHIN, status);
        profile::write_the_end();
        report::write_the_end();
    }
    // SAFETY: 1: the C library's type.
    match unsafe { BEHIND.find::<Exit>() } {
        // SAFETY: by duty 1.
        Some(next) => unsafe { next(status) },
        // SAFETY: may be called at any time.
        None => unsafe { libc::abort() },
    }
}

/// The C library's `setlocale`; an interpreter that came after the program's start is served first.
///
/// # Safety
///
/// 1. As `setlocale`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn setlocale(category: c_int, locale: *const c_char) -> *mut c_char {
    // SAFETY: 1: `setlocale` is for programs in which one thread alone looks at their locale and environment (duty 1), and an
    // interpreter that is not initialized is that thread's.
    unsafe { load::serve_late_host() };
    // SAFETY: 1: the C library's type.
    let next = unsafe { SET_LOCALE.find::<SetLocale>() };
    // SAFETY: by duty 1.
    next.map_or(ptr::null_mut(), |next| unsafe { next(category, locale) })
}

type AllocatorName = unsafe extern "C" fn() -> *const c_char;

/// The name of the configuration that serves the interpreter now, as `PYTHONMALLOC` spells it; null where a record is neither
/// ours nor the interpreter's own.
///
/// May be called from any thread. The text lives for ever.
#[unsafe(no_mangle)]
pub extern "C" fn _PyMem_GetCurrentAllocatorName() -> *const c_char {
    static BEHIND: Behind = Behind::new(c"_PyMem_GetCurrentAllocatorName");
    if let Some(name) = service::installed().and_then(|service| service.current_name()) {
        return name.as_ptr();
    }
    // SAFETY: 1: the interpreter's type.
    let next = unsafe { BEHIND.find::<AllocatorName>() };
    // SAFETY: may be called at any time from any thread.
    next.map_or(ptr::null(), |next| unsafe { next() })
}

/// What the interpreter answers while it does not trace.
const TRACING_IS_OFF: c_int = -2;

type Track = unsafe extern "C" fn(c_uint, usize, usize) -> c_int;
type Untrack = unsafe extern "C" fn(c_uint, usize) -> c_int;

/// The interpreter's `PyTraceMalloc_Track`: `size` bytes at `address` are memory of an extension, which has `domain` as its number.
///
/// May be called from any thread.
#[unsafe(no_mangle)]
pub extern "C" fn PyTraceMalloc_Track(domain: c_uint, address: usize, size: usize) -> c_int {
    static BEHIND: Behind = Behind::new(c"PyTraceMalloc_Track");
    if let Some(running) = profile::running() {
        running.tracker().track(domain, address, size);
    }
    // SAFETY: 1: the interpreter's type.
    let next = unsafe { BEHIND.find::<Track>() };
    // SAFETY: takes any numbers, from any thread.
    next.map_or(TRACING_IS_OFF, |next| unsafe { next(domain, address, size) })
}

/// The interpreter's `PyTraceMalloc_Untrack`: what was reported at `address` is gone.
///
/// May be called from any thread.
#[unsafe(no_mangle)]
pub extern "C" fn PyTraceMalloc_Untrack(domain: c_uint, address: usize) -> c_int {
    static BEHIND: Behind = Behind::new(c"PyTraceMalloc_Untrack");
    if let Some(running) = profile::running() {
        running.tracker().untrack(domain, address);
    }
    // SAFETY: 1: the interpreter's type.
    let next = unsafe { BEHIND.find::<Untrack>() };
    // SAFETY: takes any numbers, from any thread.
    next.map_or(TRACING_IS_OFF, |next| unsafe { next(domain, address) })
}
