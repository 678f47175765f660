//! Owns what is asked of the interpreter: its raw domain as a [`Malloc`], and whether it has started.

use core::ffi::{c_int, c_void};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

use malloc_api::Malloc;

unsafe extern "C" {
    safe fn PyMem_RawMalloc(size: usize) -> *mut c_void;
    safe fn PyMem_RawCalloc(nelem: usize, elsize: usize) -> *mut c_void;
    fn PyMem_RawRealloc(ptr: *mut c_void, new_size: usize) -> *mut c_void;
    fn PyMem_RawFree(ptr: *mut c_void);
    safe fn Py_IsInitialized() -> c_int;
}

/// Whether the interpreter has ever started. Its allocators are chosen by then, and stay chosen when it has ended.
#[inline]
pub(crate) fn has_started() -> bool {
    static STARTED: AtomicBool = AtomicBool::new(false);

    #[cold]
    fn ask() -> bool {
        let started = Py_IsInitialized() != 0;
        STARTED.store(started, Relaxed);
        started
    }

    STARTED.load(Relaxed) || ask()
}

/// The interpreter's raw domain. Blocks of 8 bytes or fewer may be aligned to 8 bytes alone, as those of its mimalloc are.
pub(crate) struct RawDomain;

fn block(ptr: *mut c_void) -> Option<NonNull<u8>> {
    NonNull::new(ptr.cast())
}

fn pointer(block: Option<NonNull<u8>>) -> *mut c_void {
    block.map_or(core::ptr::null_mut(), |block| block.as_ptr().cast())
}

// SAFETY: 1: the raw domain's blocks are exclusive and of any thread, and aligned to `MIN_ALIGN` where they have so many bytes:
// `PyMemRaw` asks for no fewer where the alignment matters. 2, 3: as documented of `PyMem_RawCalloc` and `PyMem_RawRealloc`. 4: C
// functions do not unwind, and do not call back. 5: any thread may free.
unsafe impl Malloc for RawDomain {
    #[inline]
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        block(PyMem_RawMalloc(size))
    }

    #[inline]
    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        block(PyMem_RawCalloc(nelem, elsize))
    }

    #[inline]
    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        // SAFETY: null or a live block of the domain, by the caller's 1 and 2.
        block(unsafe { PyMem_RawRealloc(pointer(ptr), new_size) })
    }

    #[inline]
    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        // SAFETY: null or a live block of the domain, which the caller gives up (1 and 2).
        unsafe { PyMem_RawFree(pointer(ptr)) };
    }
}
