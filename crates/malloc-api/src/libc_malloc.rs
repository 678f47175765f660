//! Owns `LibcMalloc`: the C library's malloc family with CPython's rules for zero sizes and the size limit.
//! Leaves everything about `Layout` to `layout.rs`.

use core::ffi::c_void;
use core::ptr::NonNull;

use crate::{MAX_REQUEST, Malloc};

/// The C library's `malloc`, `calloc`, `realloc` and `free`, as CPython's raw domain uses them.
///
/// Sizes are in bytes. The C library is asked for at least one byte, so that every zero-size request is a distinct
/// block and `realloc` to 0 never frees; it is not asked at all for more than [`MAX_REQUEST`]. Blocks are those of the
/// C library: C code may `free` them and the other way round.
///
/// # Examples
///
/// ```
/// use malloc_api::{LibcMalloc, Malloc};
///
/// let block = LibcMalloc.malloc(0).expect("zero bytes are a block too");
/// // SAFETY: (1) `block` is live and (2) not used afterwards.
/// unsafe { LibcMalloc.free(Some(block)) };
/// assert!(LibcMalloc.malloc(usize::MAX).is_none());
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LibcMalloc;

#[inline]
fn as_c(ptr: Option<NonNull<u8>>) -> *mut c_void {
    ptr.map_or(core::ptr::null_mut(), |block| block.as_ptr().cast())
}

// SAFETY: 1 and 2 are C's contract for the four functions, whose blocks are aligned to at least `MIN_ALIGN` on the targets
// of the `libc` crate; 3: C's `realloc` leaves the block alone when it fails for a size that is not zero, and it is
// never given zero; 4: C does not unwind, and this code calls nothing else; 5: the state is the process's, not `self`.
unsafe impl Malloc for LibcMalloc {
    #[inline]
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        if size > MAX_REQUEST {
            return None;
        }
        // SAFETY: `malloc` has no preconditions.
        let block = unsafe { libc::malloc(size.max(1)) };
        NonNull::new(block.cast())
    }

    #[inline]
    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        let size = nelem.checked_mul(elsize)?;
        if size > MAX_REQUEST {
            return None;
        }
        // SAFETY: `calloc` has no preconditions.
        let block = unsafe { libc::calloc(1, size.max(1)) };
        NonNull::new(block.cast())
    }

    #[inline]
    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        if new_size > MAX_REQUEST {
            return None;
        }
        // SAFETY: `ptr` is null or a live block of the C library (caller's 1), and is not used after success (2).
        let block = unsafe { libc::realloc(as_c(ptr), new_size.max(1)) };
        NonNull::new(block.cast())
    }

    #[inline]
    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        // SAFETY: `ptr` is null or a live block of the C library (caller's 1), and is not used again (2).
        unsafe { libc::free(as_c(ptr)) }
    }
}
