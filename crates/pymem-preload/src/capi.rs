//! Owns the part of CPython's C API that is used: its types, and the lookup of its functions in the running process.
//! Leaves what the answers mean to `host.rs`.
//!
//! Nothing is linked: every function is looked up by name, so that the library loads into any process.

use core::ffi::{CStr, c_char, c_int, c_uint, c_void};

use pymem_domains::PyMemAllocatorEx;

/// A Python object; only ever behind a pointer.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct PyObject {
    _opaque: [u8; 0],
}

/// The functions that every supported interpreter exports.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Api {
    pub(crate) set_allocator: unsafe extern "C" fn(domain: c_int, allocator: *mut PyMemAllocatorEx),
    pub(crate) get_allocator: unsafe extern "C" fn(domain: c_int, allocator: *mut PyMemAllocatorEx),
    pub(crate) setup_debug_hooks: unsafe extern "C" fn(),
    pub(crate) is_initialized: unsafe extern "C" fn() -> c_int,
    pub(crate) get_version: unsafe extern "C" fn() -> *const c_char,
    pub(crate) gil_check: unsafe extern "C" fn() -> c_int,
    pub(crate) fatal_error: unsafe extern "C" fn(message: *const c_char) -> !,
    /// `_Py_FatalErrorFunc`, since 3.9: the same with the name of the function.
    pub(crate) fatal_error_func:
        Option<unsafe extern "C" fn(func: *const c_char, message: *const c_char) -> !>,
}

impl Api {
    /// Looks the functions up; `None` when the process has no interpreter that takes allocators.
    pub(crate) fn find() -> Option<Self> {
        // SAFETY: each name is that of a function of CPython with this signature, in every version that exports it.
        unsafe {
            Some(Self {
                set_allocator: symbol(c"PyMem_SetAllocator")?,
                get_allocator: symbol(c"PyMem_GetAllocator")?,
                setup_debug_hooks: symbol(c"PyMem_SetupDebugHooks")?,
                is_initialized: symbol(c"Py_IsInitialized")?,
                get_version: symbol(c"Py_GetVersion")?,
                gil_check: symbol(c"PyGILState_Check")?,
                fatal_error: symbol(c"Py_FatalError")?,
                fatal_error_func: symbol(c"_Py_FatalErrorFunc"),
            })
        }
    }
}

/// The functions by which an interpreter that traces allocations tells where a block was allocated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TraceApi {
    pub(crate) untrack: unsafe extern "C" fn(domain: c_uint, ptr: usize) -> c_int,
    pub(crate) get_traceback: unsafe extern "C" fn(domain: c_uint, ptr: usize) -> *mut PyObject,
    pub(crate) tuple_size: unsafe extern "C" fn(*mut PyObject) -> isize,
    pub(crate) tuple_get_item: unsafe extern "C" fn(*mut PyObject, isize) -> *mut PyObject,
    pub(crate) unicode_as_utf8: unsafe extern "C" fn(*mut PyObject, *mut isize) -> *const c_char,
    pub(crate) long_as_long: unsafe extern "C" fn(*mut PyObject) -> core::ffi::c_long,
    pub(crate) clear_error: unsafe extern "C" fn(),
}

impl TraceApi {
    pub(crate) fn find() -> Option<Self> {
        // SAFETY: each name is that of a function of CPython with this signature, in every version that exports it.
        unsafe {
            Some(Self {
                untrack: symbol(c"PyTraceMalloc_Untrack")?,
                get_traceback: symbol(c"_PyTraceMalloc_GetTraceback")?,
                tuple_size: symbol(c"PyTuple_Size")?,
                tuple_get_item: symbol(c"PyTuple_GetItem")?,
                unicode_as_utf8: symbol(c"PyUnicode_AsUTF8AndSize")?,
                long_as_long: symbol(c"PyLong_AsLong")?,
                clear_error: symbol(c"PyErr_Clear")?,
            })
        }
    }
}

/// Looks a function up in the whole process.
///
/// # Safety
///
/// 1. `F` is a function pointer, and its signature that of every function of this name.
pub(crate) unsafe fn symbol<F: Copy>(name: &CStr) -> Option<F> {
    const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
    // SAFETY: the name ends with a NUL.
    let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    if address.is_null() {
        return None;
    }
    // SAFETY: a function pointer has the size of the address, which is that of a function of this type (duty 1).
    Some(unsafe { core::mem::transmute_copy(&address) })
}
