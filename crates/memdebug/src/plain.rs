//! Owns the path of hooks without options: most calls of most programs, so that every instruction counts.
//!
//! Small blocks are filled by stores inline; larger ones leave for functions of their own, so that the rest needs no
//! registers saved. Leaves which calls may come here to `hooks.rs`.

use core::ptr::{self, NonNull};

use malloc_api::Malloc;

use crate::annotated;
use crate::block::{self, HEADER_BYTES, base_of, max_request, overhead};
use crate::erase::Erased;
use crate::hooks::DebugHooks;
use crate::pattern::{CLEANBYTE, DEADBYTE, INLINE_BYTES, fill_at_least_8, fill_small};
use crate::report::violation::Call;

impl<A: Malloc> DebugHooks<A> {
    /// `malloc` without options.
    #[inline(always)]
    pub(crate) fn malloc_plain(&self, size: usize) -> Option<NonNull<u8>> {
        if size > INLINE_BYTES {
            return self.malloc_large(size);
        }
        let base = self.inner.malloc(size + overhead(false))?;
        let data = base.as_ptr().wrapping_add(HEADER_BYTES);
        // SAFETY: 1 and 2: the front of a new block, 8-aligned at least.
        unsafe { block::write_header(base.as_ptr(), size, self.id_word) };
        // SAFETY: 1: the data, or its guard where the data is shorter than 8; the guard is written below. 2: tested above.
        unsafe { fill_small(data, CLEANBYTE, size) };
        // SAFETY: 1: the block has room for the guard after the data.
        unsafe { block::write_tail(base.as_ptr(), size, None) };
        annotated::dressed(base.as_ptr(), size, false);
        annotated::fresh(data, size);
        // SAFETY: 16 bytes into a block of more than 16.
        Some(unsafe { base.add(HEADER_BYTES) })
    }

    /// `malloc` of data too large to be filled inline.
    #[inline(never)]
    fn malloc_large(&self, size: usize) -> Option<NonNull<u8>> {
        if size > max_request(false) {
            return None;
        }
        let base = self.inner.malloc(size + overhead(false))?;
        let data = base.as_ptr().wrapping_add(HEADER_BYTES);
        // SAFETY: 1 and 2: the front of a new block, 8-aligned at least.
        unsafe { block::write_header(base.as_ptr(), size, self.id_word) };
        // SAFETY: 1: the block has room for the guard after the data.
        unsafe { block::write_tail(base.as_ptr(), size, None) };
        // SAFETY: the data of the block.
        unsafe { ptr::write_bytes(data, CLEANBYTE, size) };
        annotated::dressed(base.as_ptr(), size, false);
        annotated::fresh(data, size);
        NonNull::new(data)
    }

    /// `calloc` of `size` bytes without options.
    #[inline]
    pub(crate) fn calloc_plain(&self, size: usize) -> Option<NonNull<u8>> {
        if size > max_request(false) {
            return None;
        }
        let base = self.inner.calloc(1, size + overhead(false))?;
        // SAFETY: 1 and 2: the front of a new block, 8-aligned at least.
        unsafe { block::write_header(base.as_ptr(), size, self.id_word) };
        // SAFETY: 1: the block has room for the guard after the data.
        unsafe { block::write_tail(base.as_ptr(), size, None) };
        annotated::dressed(base.as_ptr(), size, false);
        // SAFETY: 16 bytes into a block of more than 16.
        Some(unsafe { base.add(HEADER_BYTES) })
    }

    /// `free` without options.
    ///
    /// # Safety
    ///
    /// As [`Malloc::free`].
    #[inline(always)]
    pub(crate) unsafe fn free_plain(&self, p: NonNull<u8>) {
        let Some(size) = self.intact_size(p) else {
            return self.bad_block(p, Call::Free);
        };
        annotated::undressed(base_of(p), size, false);
        if size > INLINE_BYTES - overhead(false) {
            // SAFETY: 1: the caller's duties 1 and 2; the block is intact.
            return unsafe { self.free_large(p, size) };
        }
        // SAFETY: the front of a live block, which has 16 bytes before its data.
        let base = unsafe { p.sub(HEADER_BYTES) };
        // SAFETY: 1: all of a live block that nobody uses any more; 2: tested above.
        unsafe { fill_small(base.as_ptr(), DEADBYTE, size + overhead(false)) };
        // SAFETY: the underlying block of a live block, not used again.
        unsafe { self.inner.free(Some(base)) };
    }

    /// `free` of a block of `size` bytes, too many to be filled inline.
    ///
    /// # Safety
    ///
    /// 1. `p` is a live block of these hooks, intact and not used again.
    #[inline(never)]
    unsafe fn free_large(&self, p: NonNull<u8>, size: usize) {
        let base = base_of(p);
        // SAFETY: all of the block (duty 1).
        unsafe { ptr::write_bytes(base, DEADBYTE, size + overhead(false)) };
        // SAFETY: the underlying block of a live block, not used again (duty 1).
        unsafe { self.inner.free(NonNull::new(base)) };
    }

    /// `realloc` without options.
    ///
    /// # Safety
    ///
    /// As [`Malloc::realloc`].
    pub(crate) unsafe fn realloc_plain(&self, p: NonNull<u8>, new: usize) -> Option<NonNull<u8>> {
        let Some(old) = self.intact_size(p) else {
            self.bad_block(p, Call::Realloc);
            return None;
        };
        if new > max_request(false) {
            return None;
        }
        let base = base_of(p);
        annotated::undressed(base, old, false);
        // SAFETY: 1: intact, so a live block (the caller's duty 1).
        let erased = unsafe { Erased::take(base, old, false) };
        // SAFETY: `base` is a live block of the inner allocator (the caller's duty 1).
        let moved = unsafe { self.inner.realloc(NonNull::new(base), new + overhead(false)) };
        let (base, size) = moved.map_or((base, old), |moved| (moved.as_ptr(), new));
        let data = base.wrapping_add(HEADER_BYTES);
        // SAFETY: 1: `size` bytes of data with 8 of guard, which are written below; 2: the erased data, moved or not.
        unsafe { erased.restore(data, size) };
        if size > old {
            // SAFETY: 1: the bytes that the block grew by, and the guard.
            unsafe { fill_at_least_8(data.wrapping_add(old), CLEANBYTE, size - old) };
        }
        // SAFETY: 1 and 2: the front of a live block: the new one, or the old one that stayed.
        unsafe { block::write_header(base, size, self.id_word) };
        // SAFETY: 1: the block has room for the guard after `size` bytes.
        unsafe { block::write_tail(base, size, None) };
        annotated::dressed(base, size, false);
        moved?;
        if size > old {
            annotated::fresh(data.wrapping_add(old), size - old);
        }
        NonNull::new(data)
    }
}
