//! Owns the process's `sigaction`: the handlers of memory faults that Python's `faulthandler` and others install come after the
//! debug hooks' handler, and not instead of it. Every other call goes to the C library.
//!
//! Were the hooks' handler replaced, `faulthandler` would raise a fault again instead of handing it on, and the hooks could not
//! tell it from a signal that was sent: a report would be lost in every thread but the main one, and a process would survive
//! a signal that should end it.

use core::ffi::c_int;
use core::mem;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering::Relaxed};

type Sigaction = unsafe extern "C" fn(c_int, *const libc::sigaction, *mut libc::sigaction) -> c_int;

/// The C library's `sigaction`, once it was looked up.
static NEXT: AtomicPtr<core::ffi::c_void> = AtomicPtr::new(ptr::null_mut());

/// The C library's `sigaction`, for every program that the library is loaded into.
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
    let Some(next) = next() else { return -1 };
    // SAFETY: by duty 1.
    unsafe { next(signal, new, old) }
}

fn next() -> Option<Sigaction> {
    let mut found = NEXT.load(Relaxed);
    if found.is_null() {
        // SAFETY: a name that ends with a NUL.
        found = unsafe { libc::dlsym(libc::RTLD_NEXT, c"sigaction".as_ptr()) };
        NEXT.store(found, Relaxed);
    }
    // SAFETY: null, which is `None`, or the function of that name.
    unsafe { mem::transmute::<*mut core::ffi::c_void, Option<Sigaction>>(found) }
}
