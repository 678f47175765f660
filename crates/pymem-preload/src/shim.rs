//! Owns the record that serves the obj domain until its first call. That call comes after the interpreter has read its
//! configuration and before it builds `os.environ`: the moment to put the hidden `PYTHONMALLOC` back. The shim then
//! installs the real record, so that later calls go straight to the allocator, and passes the call on. When the
//! interpreter has ended, all that is done again, for a program that starts it a second time; newer interpreters reset their records
//! then, and find the variable as it was, unless they do not know its row.
//!
//! Its context is that of the real record: a thread that sees some words of the one and some of the other while the host
//! exchanges them calls either function with the context that both take.

use core::ffi::{c_int, c_void};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::OnceLock;

use malloc_api::Malloc;
use pymem_domains::{AllocatorRecord, Domain, PyMemAllocatorEx};

use crate::host::capi::symbol;
use crate::host::python::{Host, host};
use crate::request::environment;

/// The real record; set before the shim is installed.
static REAL: OnceLock<AllocatorRecord> = OnceLock::new();

type AtExit = unsafe extern "C" fn(extern "C" fn()) -> c_int;

/// The interpreter's `Py_AtExit`; looked up together with all else that is looked up at the start.
static AT_EXIT: OnceLock<Option<AtExit>> = OnceLock::new();

/// Whether a second start of the interpreter finds what the first one has found.
static STARTS_OVER: AtomicBool = AtomicBool::new(false);

/// The record that the obj domain starts with, on the way to `real`; at each start, if it `starts_over`.
pub(crate) fn first_call_shim(real: AllocatorRecord, starts_over: bool) -> PyMemAllocatorEx {
    let real = REAL.get_or_init(|| real);
    // The thread that starts the interpreter makes the first call too.
    STARTS_OVER.store(starts_over, Relaxed);
    // SAFETY: 1: a function of CPython with this signature, in every version.
    AT_EXIT.get_or_init(|| unsafe { symbol(c"Py_AtExit") });
    PyMemAllocatorEx {
        ctx: real.ctx(),
        malloc: Some(malloc),
        calloc: Some(calloc),
        realloc: Some(realloc),
        free: Some(free),
    }
}

/// What the first call does, and any later one that still finds the shim installed (below somebody's wrapper).
#[cold]
fn pass() -> &'static AllocatorRecord {
    let real = REAL.get().expect("set before the shim was installed");
    if let Some(host) = host() {
        // SAFETY: 1: the first object of a starting interpreter is made before it lets other threads run.
        unsafe { environment::restore() };
        if retire(host, real) && STARTS_OVER.load(Relaxed) {
            start_over_at_the_end();
        }
    }
    real
}

/// Has the variable hidden and the shim installed again when the interpreter ends.
fn start_over_at_the_end() {
    extern "C" fn at_end() {
        if let (Some(host), Some(real)) = (host(), REAL.get()) {
            // SAFETY: 1: the interpreter has ended on this thread, and the threads that it had with it.
            unsafe { environment::hide_pythonmalloc() };
            // SAFETY: 1: the shim's blocks are the real record's. 2: as above.
            unsafe { host.set_allocator(Domain::Obj, first_call_shim(*real, true)) };
        }
    }
    if let Some(Some(at_exit)) = AT_EXIT.get() {
        // SAFETY: may be called at any time; with a full list of functions a second start is the host's alone.
        unsafe { at_exit(at_end) };
    }
}

/// Installs the real record, unless somebody put another one over the shim; whether it did.
fn retire(host: &Host, real: &AllocatorRecord) -> bool {
    let is_shim = host
        .get_allocator(Domain::Obj)
        .malloc
        .is_some_and(|f| f as usize == malloc as *const () as usize);
    if is_shim {
        // SAFETY: 1: the shim's blocks are the real record's. 2: the two records mix, as the header says.
        unsafe { host.set_allocator(Domain::Obj, real.to_c()) };
    }
    is_shim
}

unsafe extern "C" fn malloc(_ctx: *mut c_void, size: usize) -> Option<NonNull<u8>> {
    pass().malloc(size)
}

unsafe extern "C" fn calloc(_ctx: *mut c_void, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
    pass().calloc(nelem, elsize)
}

/// # Safety
///
/// 1. The duties of [`Malloc::realloc`].
unsafe extern "C" fn realloc(
    _ctx: *mut c_void,
    ptr: Option<NonNull<u8>>,
    new_size: usize,
) -> Option<NonNull<u8>> {
    // SAFETY: by duty 1; the shim's blocks are the real record's.
    unsafe { pass().realloc(ptr, new_size) }
}

/// # Safety
///
/// 1. The duties of [`Malloc::free`].
unsafe extern "C" fn free(_ctx: *mut c_void, ptr: Option<NonNull<u8>>) {
    // SAFETY: by duty 1; the shim's blocks are the real record's.
    unsafe { pass().free(ptr) }
}
