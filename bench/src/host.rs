//! Owns the interpreter that this library was loaded into: its own allocator records and its version.

use std::ffi::{CStr, c_char, c_int, c_void};

use malloc_api::{AllocatorRecord, PyMemAllocatorEx, ThreadSafety};

use crate::allocators::Records;

fn symbol(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: a terminated name, looked up in the whole process.
    let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    (!address.is_null()).then_some(address)
}

/// Whether this process is a Python interpreter whose allocators can be asked for.
pub fn is_python() -> bool {
    symbol(c"PyMem_GetAllocator").is_some()
}

/// Version of the interpreter, for instance `3.11.2`; `None` outside an interpreter.
pub fn version() -> Option<String> {
    let address = symbol(c"Py_GetVersion")?;
    // SAFETY: `const char *Py_GetVersion(void)` in CPython's C API; callable before initialisation.
    let get = unsafe {
        std::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> *const c_char>(address)
    };
    // SAFETY: callable at any time.
    let text = unsafe { get() };
    // SAFETY: a static terminated string.
    let text = unsafe { CStr::from_ptr(text) }.to_str().ok()?;
    text.split_whitespace().next().map(str::to_owned)
}

/// From this minor version of CPython 3 on, pymalloc's state is a part of the interpreter's.
const STATE_IN_INTERPRETER: u32 = 12;

/// Starts the interpreter where pymalloc needs one; before, pymalloc's state is a static of the program.
fn start() -> Option<()> {
    let minor: u32 = version()?.split('.').nth(1)?.parse().ok()?;
    if minor < STATE_IN_INTERPRETER {
        return Some(());
    }
    let is_initialized = symbol(c"Py_IsInitialized")?;
    // SAFETY: `int Py_IsInitialized(void)` in CPython's C API.
    let is_initialized = unsafe {
        std::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> c_int>(is_initialized)
    };
    // SAFETY: callable at any time.
    if unsafe { is_initialized() } != 0 {
        return Some(());
    }
    let initialize = symbol(c"Py_InitializeEx")?;
    // SAFETY: `void Py_InitializeEx(int)` in CPython's C API.
    let initialize =
        unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn(c_int)>(initialize) };
    // SAFETY: the only thread of the process, and not initialised yet.
    unsafe { initialize(0) };
    Some(())
}

/// CPython's own allocators, as `PyMem_GetAllocator` hands them out.
pub fn records() -> Option<Records> {
    let get = symbol(c"PyMem_GetAllocator")?;
    start()?;
    // SAFETY: `void PyMem_GetAllocator(PyMemAllocatorDomain, PyMemAllocatorEx *)`; the enum is a C int.
    let get = unsafe {
        std::mem::transmute::<*mut c_void, unsafe extern "C" fn(c_int, *mut PyMemAllocatorEx)>(get)
    };
    let [raw, mem, obj] = [0, 1, 2].map(|domain: c_int| {
        let mut record = PyMemAllocatorEx::NULL;
        // SAFETY: domains 0 to 2 exist, and the record has the layout that the function fills.
        unsafe { get(domain, &raw mut record) };
        // SAFETY: 1 and 2. CPython's allocators keep C's contract for as long as the process lives; 3. this row is not
        // `threads`, so that the main thread alone calls them.
        unsafe { AllocatorRecord::from_c(record, ThreadSafety::AnyThread) }.ok()
    });
    Some([raw?, mem?, obj?])
}
