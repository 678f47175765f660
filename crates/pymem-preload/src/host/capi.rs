//! Owns the part of CPython's C API that is used: its types, and the lookup of its functions in the running process.
//! Leaves what the answers mean to `python.rs`.
//!
//! Nothing is linked: every function is looked up by name, so that the library loads into any process.

use core::ffi::{CStr, c_char, c_int, c_long, c_uint, c_void};
use core::mem::MaybeUninit;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, Ordering::Relaxed};

use pymem_domains::PyMemAllocatorEx;

/// A Python object; only ever behind a pointer.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct PyObject {
    _opaque: [u8; 0],
}

/// A thread state; only ever compared.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct PyThreadState {
    _opaque: [u8; 0],
}

/// A function for the interpreter to make an object of.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct PyMethodDef {
    pub(crate) name: *const c_char,
    pub(crate) function: unsafe extern "C" fn(*mut PyObject, *mut PyObject) -> *mut PyObject,
    pub(crate) flags: c_int,
    pub(crate) doc: *const c_char,
}

impl PyMethodDef {
    /// The flag of a function without arguments.
    pub(crate) const NO_ARGUMENTS: c_int = 4;
}

/// Functions of the interpreter, looked up by their C names. `find` gives `None` where one is missing.
macro_rules! functions {
    ($(#[$doc:meta])* $name:ident { $($field:ident = $symbol:literal: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub(crate) struct $name {
            $(pub(crate) $field: $type,)*
        }

        impl $name {
            pub(crate) fn find() -> Option<Self> {
                Some(Self {
                    // SAFETY: 1: the name is that of a function of CPython with this signature, in every version that
                    // exports it.
                    $($field: unsafe { symbol::<$type>($symbol) }?,)*
                })
            }
        }
    };
}

functions! {
    /// The functions that every supported interpreter exports.
    Api {
        set_allocator = c"PyMem_SetAllocator": unsafe extern "C" fn(c_int, *mut PyMemAllocatorEx),
        get_allocator = c"PyMem_GetAllocator": unsafe extern "C" fn(c_int, *mut PyMemAllocatorEx),
        setup_debug_hooks = c"PyMem_SetupDebugHooks": unsafe extern "C" fn(),
        is_initialized = c"Py_IsInitialized": unsafe extern "C" fn() -> c_int,
        get_version = c"Py_GetVersion": unsafe extern "C" fn() -> *const c_char,
        gil_check = c"PyGILState_Check": unsafe extern "C" fn() -> c_int,
        fatal_error = c"Py_FatalError": unsafe extern "C" fn(message: *const c_char) -> !,
    }
}

functions! {
    /// The functions by which an interpreter that traces allocations tells where a block was allocated.
    TraceApi {
        untrack = c"PyTraceMalloc_Untrack": unsafe extern "C" fn(domain: c_uint, ptr: usize) -> c_int,
        get_traceback = c"_PyTraceMalloc_GetTraceback":
            unsafe extern "C" fn(domain: c_uint, ptr: usize) -> *mut PyObject,
        tuple_size = c"PyTuple_Size": unsafe extern "C" fn(*mut PyObject) -> isize,
        tuple_get_item = c"PyTuple_GetItem":
            unsafe extern "C" fn(*mut PyObject, isize) -> *mut PyObject,
        unicode_as_utf8 = c"PyUnicode_AsUTF8AndSize":
            unsafe extern "C" fn(*mut PyObject, *mut isize) -> *const c_char,
        long_as_long = c"PyLong_AsLong": unsafe extern "C" fn(*mut PyObject) -> c_long,
        clear_error = c"PyErr_Clear": unsafe extern "C" fn(),
    }
}

functions! {
    /// The functions by which a function of ours is called when the program is over.
    AtExitApi {
        add_pending_call = c"Py_AddPendingCall":
            unsafe extern "C" fn(unsafe extern "C" fn(*mut c_void) -> c_int, *mut c_void) -> c_int,
        import_module = c"PyImport_ImportModule":
            unsafe extern "C" fn(*const c_char) -> *mut PyObject,
        new_function = c"PyCFunction_NewEx":
            unsafe extern "C" fn(*mut PyMethodDef, *mut PyObject, *mut PyObject) -> *mut PyObject,
        call_method = c"PyObject_CallMethod":
            unsafe extern "C" fn(*mut PyObject, *const c_char, *const c_char, ...) -> *mut PyObject,
        build_value = c"Py_BuildValue": unsafe extern "C" fn(*const c_char, ...) -> *mut PyObject,
        dec_ref = c"Py_DecRef": unsafe extern "C" fn(*mut PyObject),
        clear_error = c"PyErr_Clear": unsafe extern "C" fn(),
    }
}

/// Where functions are looked up: in the whole process, until [`look_in`].
static PLACE: AtomicPtr<c_void> = AtomicPtr::new(libc::RTLD_DEFAULT);

/// Has functions looked up in one library and those that it was linked with, from now on.
///
/// # Safety
///
/// 1. `library` is an open library that is never closed.
pub(crate) unsafe fn look_in(library: NonNull<c_void>) {
    PLACE.store(library.as_ptr(), Relaxed);
}

/// Looks a function up.
///
/// # Safety
///
/// 1. `F` is a function pointer, and its signature that of every function of this name.
pub(crate) unsafe fn symbol<F: Copy>(name: &CStr) -> Option<F> {
    const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
    // SAFETY: the name ends with a NUL.
    let address = unsafe { libc::dlsym(PLACE.load(Relaxed), name.as_ptr()) };
    if address.is_null() {
        return None;
    }
    // SAFETY: a function pointer has the size of the address, which is that of a function of this type (duty 1).
    Some(unsafe { core::mem::transmute_copy(&address) })
}

/// The address at which the program or the library with `address` begins.
pub(crate) fn base_of(address: *const c_void) -> Option<usize> {
    let mut info = MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: any address may be asked for; `info` is writable.
    let found = unsafe { libc::dladdr(address, info.as_mut_ptr()) };
    // SAFETY: four words, for which zeros are good.
    (found != 0).then(|| unsafe { info.assume_init() }.dli_fbase.addr())
}

/// The word at an address.
///
/// # Safety
///
/// 1. A word can be read there.
#[inline(always)]
pub(crate) unsafe fn word_at(address: usize) -> usize {
    // SAFETY: duty 1.
    unsafe { ptr::with_exposed_provenance::<usize>(address).read() }
}

/// As [`word_at`], of a word that is read anew even if it was read before.
///
/// # Safety
///
/// 1. A word can be read there.
#[inline(always)]
pub(crate) unsafe fn word_again(address: usize) -> usize {
    // SAFETY: duty 1.
    unsafe { ptr::with_exposed_provenance::<usize>(address).read_volatile() }
}
