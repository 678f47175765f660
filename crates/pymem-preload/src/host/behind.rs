//! Owns the functions that stand behind ours of the same name, and when they are looked up.

use core::ffi::{CStr, c_char, c_int, c_void};
use core::mem;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering::Relaxed};

/// The function of the same name that stands behind one of ours.
pub(crate) struct Behind {
    name: &'static CStr,
    /// Null until it was looked up, and where there is none.
    found: AtomicPtr<c_void>,
}

impl Behind {
    pub(crate) const fn new(name: &'static CStr) -> Self {
        Self { name, found: AtomicPtr::new(ptr::null_mut()) }
    }

    /// The function; `None` where there is none.
    ///
    /// # Safety
    ///
    /// 1. `F` is a function pointer of the signature that every function of this name has.
    pub(crate) unsafe fn find<F: Copy>(&self) -> Option<F> {
        // SAFETY: 1: by duty 1.
        unsafe { self.find_in(|| libc::RTLD_NEXT) }
    }

    /// As [`find`](Self::find), in the library that `open` returns, which is never closed; `None` where that is null.
    ///
    /// # Safety
    ///
    /// 1. As for `find`.
    pub(crate) unsafe fn find_in<F: Copy>(&self, open: impl FnOnce() -> *mut c_void) -> Option<F> {
        const { assert!(size_of::<Option<F>>() == size_of::<*mut c_void>()) };
        let mut found = self.found.load(Relaxed);
        if found.is_null() {
            let library = open();
            if !library.is_null() {
                // SAFETY: an open library, and a name that ends with a NUL.
                found = unsafe { libc::dlsym(library, self.name.as_ptr()) };
                self.found.store(found, Relaxed);
            }
        }
        // SAFETY: null, which is `None`, or the address of a function of this type (duty 1).
        unsafe { mem::transmute_copy::<*mut c_void, Option<F>>(&found) }
    }
}

pub(crate) static SIGACTION: Behind = Behind::new(c"sigaction");
pub(crate) static SET_LOCALE: Behind = Behind::new(c"setlocale");

/// Looks up what every interpreter calls, while the names are in memory that goes back after the start.
pub(crate) fn look_up() {
    // SAFETY: 1: the C library's type.
    let _ = unsafe { SIGACTION.find::<Sigaction>() };
    // SAFETY: 1: the C library's type.
    let _ = unsafe { SET_LOCALE.find::<SetLocale>() };
}

pub(crate) type Sigaction =
    unsafe extern "C" fn(c_int, *const libc::sigaction, *mut libc::sigaction) -> c_int;
pub(crate) type SetLocale = unsafe extern "C" fn(c_int, *const c_char) -> *mut c_char;
