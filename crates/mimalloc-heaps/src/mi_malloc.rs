//! Owns [`MiMalloc`]: mimalloc's plain functions on the calling thread's default heap, with CPython's rules.

use core::ffi::c_void;
use core::ptr::{self, NonNull};

use malloc_api::{MAX_REQUEST, MIN_ALIGN, Malloc};

use crate::page::{room_of, stays};
use crate::{ffi, free, idle, theap};

/// mimalloc's `malloc`, `calloc`, `realloc` and `free` on the calling thread's default heap.
///
/// Sizes are in bytes. mimalloc aligns blocks of up to 8 bytes to 8 only, so every request is raised to [`MIN_ALIGN`]
/// bytes; a request of 0 is thereby a distinct block and `realloc` to 0 never frees. It needs no attached thread, which is
/// what the raw domain asks for, and its blocks belong to no interpreter.
///
/// # Examples
///
/// ```
/// use malloc_api::Malloc;
/// use mimalloc_heaps::MiMalloc;
///
/// let block = MiMalloc.malloc(0).expect("zero bytes are a block too");
/// // SAFETY: (1) `block` is live and (2) not used afterwards.
/// unsafe { MiMalloc.free(Some(block)) };
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MiMalloc;

impl MiMalloc {
    /// Bytes that the live block at `ptr` really has, at least what was asked for.
    ///
    /// # Safety
    ///
    /// 1. `ptr` is a live block of mimalloc, from this handle or from any heap of the process.
    #[must_use]
    pub unsafe fn usable_size(&self, ptr: NonNull<u8>) -> usize {
        // SAFETY: (1) is what mimalloc asks for.
        unsafe { ffi::mi_usable_size(ptr.as_ptr().cast()) }
    }
}

/// The address that C expects: null for `None`.
#[inline]
pub(crate) fn as_c(ptr: Option<NonNull<u8>>) -> *mut c_void {
    ptr.map_or(ptr::null_mut(), |block| block.as_ptr().cast())
}

/// Bytes to ask mimalloc for; `None` above [`MAX_REQUEST`].
#[inline]
pub(crate) fn request(size: usize) -> Option<usize> {
    (size <= MAX_REQUEST).then(|| size.max(MIN_ALIGN))
}

/// Bytes to ask mimalloc for, for `nelem` elements; `None` on overflow and above [`MAX_REQUEST`].
#[inline]
pub(crate) fn request_array(nelem: usize, elsize: usize) -> Option<usize> {
    nelem.checked_mul(elsize).and_then(request)
}

/// Has mimalloc look for a block.
#[inline(never)]
fn malloc_generic(size: usize) -> Option<NonNull<u8>> {
    let size = request(size)?;
    // SAFETY: `mi_malloc` has no preconditions.
    NonNull::new(unsafe { ffi::mi_malloc(size) }.cast())
}

// SAFETY: 1: mimalloc's blocks are exclusive and, from 9 bytes on, aligned to `MIN_ALIGN` (to 16 on all targets); `request`
// asks for no less. 2 and 3: as C's, and `mi_realloc` leaves the block alone when it returns null for a size that is not
// zero, which `request` rules out. 4: C does not unwind, and nothing else is called. 5: the state is the process's.
unsafe impl Malloc for MiMalloc {
    #[inline]
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        // SAFETY: (1) the calling thread's.
        match unsafe { theap::malloc(ffi::default_theap(), size) } {
            Some(block) => Some(block),
            None => malloc_generic(size),
        }
    }

    #[inline]
    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        let size = request_array(nelem, elsize)?;
        // SAFETY: (1) the calling thread's.
        match unsafe { theap::calloc(ffi::default_theap(), size) } {
            Some(block) => Some(block),
            // SAFETY: `mi_calloc` has no preconditions.
            None => NonNull::new(unsafe { ffi::mi_calloc(1, size) }.cast()),
        }
    }

    #[inline]
    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        let size = request(new_size)?;
        // SAFETY: (1) a live block of mimalloc (caller's 1).
        let room = ptr.map_or(0, |block| unsafe { room_of(block) });
        if ptr.is_some() && stays(room, size) {
            return ptr;
        }
        // SAFETY: `ptr` is null or a live block of mimalloc (caller's 1) and not used after success (2).
        let block = unsafe { ffi::mi_realloc(as_c(ptr), size) };
        idle::note_moved(room);
        NonNull::new(block.cast())
    }

    #[inline]
    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        if let Some(block) = ptr {
            // SAFETY: (1) a live block of mimalloc (caller's 1), (2) not used again (2).
            unsafe { free::free(block) }
        }
    }
}
