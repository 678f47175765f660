//! Owns the hiding and restoring of a variable in the process's environment.
//!
//! A non-empty `PYTHONMALLOC` makes the interpreter install its own table over ours while it reads its configuration, so
//! the variable must be out of sight then, and back before `os.environ` is built and children are started. Its pointer in
//! the environment is exchanged and put back: nothing is allocated, no text moves, and the order stays.

use core::ffi::{CStr, c_char};
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering::Relaxed};

unsafe extern "C" {
    static mut environ: *mut *mut c_char;
}

/// Stands in the environment for the hidden entry. Without a `=` no reader takes it for a variable.
static PLACEHOLDER: &CStr = c"PYTHONMALLOC";

/// The hidden entry, `PYTHONMALLOC=value`; null when nothing is hidden.
///
/// It changes in a constructor and once more on the interpreter's first thread, both before any other reader.
static HIDDEN: AtomicPtr<c_char> = AtomicPtr::new(ptr::null_mut());

/// The value of a variable; `None` when it is not set. Empty is a value.
///
/// # Safety
///
/// 1. No other thread changes the environment.
pub(crate) unsafe fn value(name: &CStr) -> Option<&'static [u8]> {
    // SAFETY: the name ends with a NUL; the environment holds still (duty 1).
    let value = unsafe { libc::getenv(name.as_ptr()) };
    if value.is_null() {
        return None;
    }
    // SAFETY: `getenv` gives a text that ends with a NUL, and entries outlive their removal.
    Some(unsafe { CStr::from_ptr(value) }.to_bytes())
}

/// Takes a variable out of the environment for good, so that child processes do not inherit it.
///
/// # Safety
///
/// 1. No other thread uses the environment.
pub(crate) unsafe fn remove(name: &CStr) {
    // SAFETY: the name ends with a NUL; the environment is the caller's (duty 1).
    unsafe { libc::unsetenv(name.as_ptr()) };
}

/// Hides `PYTHONMALLOC`, if it is set, until [`restore`].
///
/// # Safety
///
/// 1. No other thread uses the environment.
pub(crate) unsafe fn hide_pythonmalloc() {
    // SAFETY: by duty 1.
    let Some(slot) = (unsafe { find(|entry| entry.to_bytes().starts_with(b"PYTHONMALLOC=")) })
    else {
        return;
    };
    // SAFETY: a slot of the environment.
    let entry = unsafe { slot.read() };
    HIDDEN.store(entry, Relaxed);
    // SAFETY: a slot of the environment, whose array is writable for `libc::setenv`.
    unsafe { slot.write(PLACEHOLDER.as_ptr().cast_mut()) };
}

/// Whether a variable is hidden.
pub(crate) fn is_hidden() -> bool {
    !HIDDEN.load(Relaxed).is_null()
}

/// Puts the hidden variable back, if any. Does nothing the second time, nor when the program removed it meanwhile.
///
/// # Safety
///
/// 1. No other thread changes the environment.
pub(crate) unsafe fn restore() {
    let entry = HIDDEN.swap(ptr::null_mut(), Relaxed);
    if entry.is_null() {
        return;
    }
    // SAFETY: by duty 1.
    if let Some(slot) = unsafe { find(|entry| ptr::eq(entry.as_ptr(), PLACEHOLDER.as_ptr())) } {
        // SAFETY: a slot of the environment; a reader sees either entry whole.
        unsafe { slot.write(entry) };
    }
}

/// The first slot of the environment whose entry `wanted` accepts.
///
/// # Safety
///
/// 1. No other thread changes the environment.
unsafe fn find(wanted: impl Fn(&CStr) -> bool) -> Option<*mut *mut c_char> {
    // SAFETY: the C library's variable; by duty 1 nobody writes it now.
    let mut slot = unsafe { environ };
    if slot.is_null() {
        return None;
    }
    loop {
        // SAFETY: the array ends with a null pointer, at which the walk ends.
        let entry = unsafe { slot.read() };
        if entry.is_null() {
            return None;
        }
        // SAFETY: entries are texts that end with a NUL.
        if wanted(unsafe { CStr::from_ptr(entry) }) {
            return Some(slot);
        }
        // SAFETY: the slot was not the last one.
        slot = unsafe { slot.add(1) };
    }
}
