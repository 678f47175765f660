//! Owns the process's `_exit`, by which Python's `os._exit` and the children of `multiprocessing` end: a profile is written then too.

use core::ffi::c_int;
use core::mem;

use crate::observe::profile;

type Exit = unsafe extern "C" fn(c_int) -> !;

/// The C library's `_exit`, for every program that the library is loaded into.
///
/// # Safety
///
/// 1. As `_exit`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn _exit(status: c_int) -> ! {
    profile::write_the_end();
    // SAFETY: a name that ends with a NUL.
    let next = unsafe { libc::dlsym(libc::RTLD_NEXT, c"_exit".as_ptr()) };
    // SAFETY: null, which is `None`, or the function of that name.
    let next = unsafe { mem::transmute::<*mut core::ffi::c_void, Option<Exit>>(next) };
    match next {
        // SAFETY: by duty 1.
        Some(next) => unsafe { next(status) },
        // SAFETY: may be called at any time.
        None => unsafe { libc::abort() },
    }
}
