//! Owns the hiding and restoring of a variable in the process's environment.
//!
//! A non-empty `PYTHONMALLOC` makes the interpreter install its own table over ours while it reads its configuration, so
//! the variable must be out of sight then, and back before `os.environ` is built and children are started. Its pointer in
//! the environment is exchanged for that of the same variable under another name: no text moves, and the order stays. A
//! program that has an interpreter and never starts it passes that name on, and the library in the child takes it back.

use core::ffi::{CStr, c_char};
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering::Relaxed};
use std::ffi::CString;

unsafe extern "C" {
    static mut environ: *mut *mut c_char;
}

/// The variable, and under which name it is hidden: the same text with a prefix.
const NAME: &[u8] = b"PYTHONMALLOC=";
const HIDDEN_NAME: &[u8] = b"PYMEM_PYTHONMALLOC=";
const PREFIX_BYTES: usize = HIDDEN_NAME.len() - NAME.len();

/// The entry `PYTHONMALLOC=value`, and the one that stands for it while it is hidden; null before.
///
/// They change in a constructor, on the interpreter's first thread, and when it has ended: before other readers, or after.
static ENTRY: AtomicPtr<c_char> = AtomicPtr::new(ptr::null_mut());
static STANDS: AtomicPtr<c_char> = AtomicPtr::new(ptr::null_mut());

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
    // SAFETY: 1: by duty 1.
    let Some(slot) = (unsafe { find(|entry| entry.to_bytes().starts_with(NAME)) }) else { return };
    // SAFETY: a slot of the environment.
    let entry = unsafe { slot.read() };
    if entry != ENTRY.load(Relaxed) || STANDS.load(Relaxed).is_null() {
        // SAFETY: an entry is a text that ends with a NUL.
        let text = unsafe { CStr::from_ptr(entry) }.to_bytes();
        let text = [&HIDDEN_NAME[..PREFIX_BYTES], text].concat();
        let Ok(text) = CString::new(text) else { return };
        // It lives for ever, as whoever reads the environment expects.
        STANDS.store(text.into_raw(), Relaxed);
        ENTRY.store(entry, Relaxed);
    }
    // SAFETY: a slot of the environment, whose array is writable for the C library.
    unsafe { slot.write(STANDS.load(Relaxed)) };
}

/// Takes back the variable that a parent has passed on hidden.
///
/// # Safety
///
/// 1. No other thread uses the environment.
pub(crate) unsafe fn take_back() {
    // SAFETY: 1: by duty 1.
    let hidden = unsafe { find(|entry| entry.to_bytes().starts_with(HIDDEN_NAME)) };
    // SAFETY: 1: by duty 1.
    let visible = unsafe { value(c"PYTHONMALLOC") };
    if let (Some(slot), None) = (hidden, visible) {
        // SAFETY: a slot of the environment.
        let entry = unsafe { slot.read() };
        // SAFETY: as above; behind the prefix of the entry is an entry too.
        unsafe { slot.write(entry.wrapping_add(PREFIX_BYTES)) };
    }
}

/// Whether a variable was hidden.
pub(crate) fn is_hidden() -> bool {
    !STANDS.load(Relaxed).is_null()
}

/// Puts the hidden variable back, if any. Does nothing the second time, nor when the program removed it meanwhile.
///
/// # Safety
///
/// 1. No other thread changes the environment.
pub(crate) unsafe fn restore() {
    let stands = STANDS.load(Relaxed);
    // SAFETY: 1: by duty 1.
    if let Some(slot) = unsafe { find(|entry| ptr::eq(entry.as_ptr(), stands)) } {
        // SAFETY: a slot of the environment; a reader sees either entry whole.
        unsafe { slot.write(ENTRY.load(Relaxed)) };
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
