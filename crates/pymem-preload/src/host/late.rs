//! Owns finding an interpreter that a program brings after its start (`dlopen` of libpython, by itself or with a plugin): its library
//! may have been opened for its opener alone, so that a look-up in the whole process does not see it.

use core::ffi::{CStr, c_int, c_void};
use core::ptr;
use std::ffi::CString;

use crate::host::capi;
use crate::host::python::{Host, host};

/// What the names of shared interpreters begin with.
const NAME: &[u8] = b"libpython3";

/// The interpreter of this process, also where only its opener sees it; `None` where there is none yet.
pub(crate) fn arrived() -> Option<&'static Host> {
    host().or_else(|| {
        let handle = loaded().into_iter().find_map(|path| {
            // SAFETY: a text that ends with a NUL; nothing is loaded that was not. What is found stays open.
            let handle =
                unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOLOAD | libc::RTLD_LAZY) };
            ptr::NonNull::new(handle)
        })?;
        // SAFETY: 1: an open library, which is never closed.
        unsafe { capi::look_in(handle) };
        host()
    })
}

/// The paths of the loaded libraries that an interpreter may be in.
fn loaded() -> Vec<CString> {
    let mut found = Vec::new();
    // SAFETY: the callback gets the list, which outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(note_if_interpreter), (&raw mut found).cast()) };
    found
}

/// # Safety
///
/// 1. `info` is the loader's description of a loaded object.
/// 2. `found` points to a list of paths that nobody else uses.
unsafe extern "C" fn note_if_interpreter(
    info: *mut libc::dl_phdr_info,
    _size: usize,
    found: *mut c_void,
) -> c_int {
    // SAFETY: by duty 1.
    let name = unsafe { (*info).dlpi_name };
    if !name.is_null() {
        // SAFETY: the loader's text ends with a NUL (duty 1).
        let path = unsafe { CStr::from_ptr(name) };
        let name = path.to_bytes().rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        if name.starts_with(NAME) {
            // SAFETY: by duty 2.
            let found = unsafe { &mut *found.cast::<Vec<CString>>() };
            found.push(path.to_owned());
        }
    }
    0
}
