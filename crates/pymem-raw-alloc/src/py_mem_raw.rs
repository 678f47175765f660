//! Owns [`PyMemRaw`], the global allocator. Leaves the interpreter's functions to `interpreter.rs`, and blocks from before its start to
//! `early.rs`.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;

use malloc_api::{GlobalAdapter, MIN_ALIGN};

use crate::early;
use crate::interpreter::{self, RawDomain};

/// The raw domain of the process's interpreter as Rust's global allocator.
///
/// Alignments above 16 bytes cost that many bytes more a block. A block that is allocated before the interpreter has started comes from
/// a room of 1 MiB, which takes nothing back. Null means what the interpreter's functions mean by it: out of memory, or a limit.
///
/// # Examples
///
/// ```no_run
/// #[global_allocator]
/// static GLOBAL: pymem_raw_alloc::PyMemRaw = pymem_raw_alloc::PyMemRaw;
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct PyMemRaw;

static DOMAIN: GlobalAdapter<RawDomain> = GlobalAdapter::new(RawDomain);

/// `layout` with room for its alignment, which a smaller block of the raw domain need not have.
#[inline]
fn padded(layout: Layout) -> Layout {
    if layout.align() == MIN_ALIGN { layout.pad_to_align() } else { layout }
}

/// A zeroed block of the room, before the interpreter has started; `None` afterwards, and where the room is too small.
#[inline]
fn early_block(layout: Layout) -> Option<NonNull<u8>> {
    if interpreter::has_started() { None } else { early::allocate(layout) }
}

// SAFETY: blocks are those of `GlobalAdapter`, for layouts that `padded` makes the same way each time, or of the room, which has each
// byte in one block; no method unwinds.
unsafe impl GlobalAlloc for PyMemRaw {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if let Some(block) = early_block(layout) {
            return block.as_ptr();
        }
        // SAFETY: the size is not 0, by the caller's duty.
        unsafe { DOMAIN.alloc(padded(layout)) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if let Some(block) = early_block(layout) {
            return block.as_ptr();
        }
        // SAFETY: the size is not 0, by the caller's duty.
        unsafe { DOMAIN.alloc_zeroed(padded(layout)) }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if !early::holds(block) {
            // SAFETY: a live block of `DOMAIN` with this layout, by the caller's duty.
            unsafe { DOMAIN.dealloc(block, padded(layout)) };
        }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller keeps the size, rounded up to the alignment, within `isize::MAX`.
        let new = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        if early::holds(block) {
            // SAFETY: the size is not 0, by the caller's duty.
            let moved = unsafe { self.alloc(new) };
            if !moved.is_null() {
                let kept = layout.size().min(new_size);
                // SAFETY: both blocks have so many bytes, and the new one is no part of the old one, which is handed out for ever.
                unsafe { moved.copy_from_nonoverlapping(block, kept) };
            }
            return moved;
        }
        // SAFETY: a live block of `DOMAIN` with this layout, and a size that is not 0, by the caller's duties.
        unsafe { DOMAIN.realloc(block, padded(layout), padded(new).size()) }
    }
}
