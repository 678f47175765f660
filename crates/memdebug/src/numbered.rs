//! Owns the four calls with serial numbers, full erasing, or the rules of free-threaded hosts: what CPython's hooks do
//! beside the common case. `checked.rs` builds on them.

use core::ptr::{self, NonNull};

use malloc_api::Malloc;

use crate::annotated;
use crate::block::{self, HEADER_BYTES, base_of, max_request, overhead};
use crate::erase::Erased;
use crate::hooks::{DebugHooks, FREE_THREADED, FULL_ERASE, SERIAL};
use crate::pattern::{CLEANBYTE, DEADBYTE, fill_at_least_8};
use crate::report::violation::Call;

impl<A: Malloc> DebugHooks<A> {
    /// `malloc` of this file.
    #[inline(never)]
    pub(crate) fn malloc_numbered(&self, size: usize) -> Option<NonNull<u8>> {
        let serial = self.has_serial();
        if size > max_request(serial) {
            return None;
        }
        let base = self.inner.malloc(size + overhead(serial))?;
        let skip = self.unfilled(None, size);
        let data = base.as_ptr().wrapping_add(HEADER_BYTES);
        // SAFETY: 1 and 2: the front of a block, 8-aligned at least.
        unsafe { block::write_header(base.as_ptr(), size, self.id_word) };
        // SAFETY: 1: inside the data, and its guard, which is written below.
        unsafe { fill_at_least_8(data.wrapping_add(skip), CLEANBYTE, size - skip) };
        // SAFETY: 1: the block has room for guard and serial number after the data.
        unsafe { block::write_tail(base.as_ptr(), size, self.next_serial()) };
        annotated::dressed(base.as_ptr(), size, serial);
        annotated::fresh(data, size);
        NonNull::new(data)
    }

    /// `calloc` of this file, of `size` bytes.
    pub(crate) fn calloc_bytes(&self, size: usize) -> Option<NonNull<u8>> {
        let serial = self.has_serial();
        if size > max_request(serial) {
            return None;
        }
        let base = self.inner.calloc(1, size + overhead(serial))?;
        // SAFETY: 1 and 2: the front of a block, 8-aligned at least.
        unsafe { block::write_header(base.as_ptr(), size, self.id_word) };
        // SAFETY: 1: the block has room for guard and serial number after the data.
        unsafe { block::write_tail(base.as_ptr(), size, self.next_serial()) };
        annotated::dressed(base.as_ptr(), size, serial);
        // SAFETY: 16 bytes into a block of more than 16.
        Some(unsafe { base.add(HEADER_BYTES) })
    }

    /// Fills a whole block dead, but for the bytes at the front of the data that the host keeps readable; gives how many
    /// these are.
    ///
    /// # Safety
    ///
    /// 1. `p` is a live block of these hooks of `size` bytes, not used again.
    pub(crate) unsafe fn fill_dead(&self, p: NonNull<u8>, size: usize) -> usize {
        let base = base_of(p);
        annotated::undressed(base, size, self.has_serial());
        let skip = self.unfilled(NonNull::new(base), size);
        // SAFETY: the header of a live block (duty 1).
        unsafe { ptr::write_bytes(base, DEADBYTE, HEADER_BYTES) };
        let rest = size - skip + overhead(self.has_serial()) - HEADER_BYTES;
        // SAFETY: 1: the rest of it, of which the guard alone has 8 bytes.
        unsafe { fill_at_least_8(p.as_ptr().wrapping_add(skip), DEADBYTE, rest) };
        skip
    }

    /// `free` of this file.
    ///
    /// # Safety
    ///
    /// 1. `p` is a live block of these hooks of `size` bytes, not used again.
    #[inline(never)]
    pub(crate) unsafe fn free_numbered(&self, p: NonNull<u8>, size: usize) {
        // SAFETY: 1: duty 1.
        unsafe { self.fill_dead(p, size) };
        // SAFETY: duty 1: the underlying block is live, and never used again.
        unsafe { self.inner.free(NonNull::new(base_of(p))) };
    }

    /// Resizes a verified block.
    ///
    /// # Safety
    ///
    /// 1. `p` is a live block of these hooks of `old` bytes.
    /// 2. After a successful call `p` is dead.
    unsafe fn resize(&self, p: NonNull<u8>, old: usize, new: usize) -> Option<NonNull<u8>> {
        let flags = self.flags();
        let serial = flags & SERIAL != 0;
        if new > max_request(serial) {
            return None;
        }
        if flags & FULL_ERASE != 0 {
            // SAFETY: 1 and 2: those of this function.
            return unsafe { self.replace(p, old, new) };
        }
        let base = base_of(p);
        annotated::undressed(base, old, serial);
        // SAFETY: duty 1: the block was written with a serial number.
        let number = serial.then(|| unsafe { block::read_serial(base, old) });
        let erased = if flags & FREE_THREADED == 0 {
            // SAFETY: 1: duty 1.
            Some(unsafe { Erased::take(base, old, serial) })
        } else {
            None
        };
        // SAFETY: duty 1: `base` is a live block of the inner allocator.
        let moved = unsafe { self.inner.realloc(NonNull::new(base), new + overhead(serial)) };
        let (base, size, number) = match moved {
            Some(base) => (base.as_ptr(), new, self.next_serial()),
            None => (base, old, number),
        };
        let data = base.wrapping_add(HEADER_BYTES);
        if let Some(erased) = erased {
            // SAFETY: 1: `size` bytes of data with 8 of guard, which are written below; 2: they are the erased block's,
            // moved or not.
            unsafe { erased.restore(data, size) };
        }
        // SAFETY: 1 and 2: the front of a live block: the new one, or the old one that stayed.
        unsafe { block::write_header(base, size, self.id_word) };
        // SAFETY: 1: the block has room for guard and serial number after `size` bytes.
        unsafe { block::write_tail(base, size, number) };
        annotated::dressed(base, size, serial);
        moved?;
        if new > old {
            // SAFETY: the bytes that the block grew by.
            unsafe { ptr::write_bytes(data.wrapping_add(old), CLEANBYTE, new - old) };
            annotated::fresh(data.wrapping_add(old), new - old);
        }
        NonNull::new(data)
    }

    /// Resizes by a new block, a copy and a free, so that every byte of the old block is filled dead.
    ///
    /// # Safety
    ///
    /// As [`resize`](Self::resize).
    unsafe fn replace(&self, p: NonNull<u8>, old: usize, new: usize) -> Option<NonNull<u8>> {
        let fresh = self.malloc_numbered(new)?;
        // SAFETY: two live blocks that do not overlap, each of at least this size.
        unsafe { ptr::copy_nonoverlapping(p.as_ptr(), fresh.as_ptr(), old.min(new)) };
        // SAFETY: 1: duties 1 and 2.
        unsafe { self.free_numbered(p, old) };
        Some(fresh)
    }

    /// `realloc` of this file.
    ///
    /// # Safety
    ///
    /// As [`Malloc::realloc`].
    pub(crate) unsafe fn realloc_numbered(
        &self,
        p: NonNull<u8>,
        new: usize,
    ) -> Option<NonNull<u8>> {
        let old = self.verified_size(p, Call::Realloc)?;
        // SAFETY: 1 and 2: the caller's; the block is intact.
        unsafe { self.resize(p, old, new) }
    }
}
