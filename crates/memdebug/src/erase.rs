//! Owns what `realloc` erases before a block moves, and puts back afterwards.
//!
//! A stale pointer to a block that `realloc` moved shall meet dead bytes. What may still be needed is saved on the stack
//! first: the whole of a small block, 64 bytes at each end of a larger one, whose middle is left as it is (CPython's
//! rule; the option `full_erase` has none of these limits).

use core::mem::MaybeUninit;
use core::ptr;

use crate::block::{HEADER_BYTES, overhead};
use crate::pattern::{DEADBYTE, INLINE_BYTES, copy_small, fill_at_least_8};

/// Bytes saved and erased at each end of a block's data.
const END_BYTES: usize = 64;

/// The saved bytes of an erased block.
pub(crate) struct Erased {
    /// All data of a block up to 128 bytes, or the first 64 and the last 64. The rest is not used.
    saved: MaybeUninit<[u8; 2 * END_BYTES]>,
    old: usize,
}

const _: () = assert!(2 * END_BYTES == INLINE_BYTES);

impl Erased {
    /// Saves the data of the block at `base`, and fills header, the ends of the data and what follows them dead.
    ///
    /// # Safety
    ///
    /// 1. `base` is a live debug block of `old` bytes.
    #[inline]
    pub(crate) unsafe fn take(base: *mut u8, old: usize, serial: bool) -> Self {
        let mut erased = Self { saved: MaybeUninit::uninit(), old };
        let to = erased.saved.as_mut_ptr().cast::<u8>();
        let data = base.wrapping_add(HEADER_BYTES);
        if old <= 2 * END_BYTES {
            // SAFETY: 1: the data, or its guard where that is shorter than 8 (duty 1); 2: tested.
            unsafe { copy_small(data, to, old) };
            // SAFETY: 1: the whole block (duty 1).
            unsafe { fill_at_least_8(base, DEADBYTE, old + overhead(serial)) };
        } else {
            let end = data.wrapping_add(old - END_BYTES);
            // SAFETY: duty 1: 64 of more than 128 bytes.
            unsafe { ptr::copy_nonoverlapping(data, to, END_BYTES) };
            // SAFETY: the last 64 of them.
            unsafe { ptr::copy_nonoverlapping(end, to.wrapping_add(END_BYTES), END_BYTES) };
            // SAFETY: 1: header and front.
            unsafe { fill_at_least_8(base, DEADBYTE, HEADER_BYTES + END_BYTES) };
            let after = overhead(serial) - HEADER_BYTES;
            // SAFETY: 1: the back with guard and serial number.
            unsafe { fill_at_least_8(end, DEADBYTE, END_BYTES + after) };
        }
        erased
    }

    /// Puts the saved bytes back, as far as they lie within `size` bytes, and others after them where these are less than
    /// eight.
    ///
    /// # Safety
    ///
    /// 1. The `max(size, 8)` bytes at `data` are valid for writes.
    /// 2. They are the erased block's data, in its place or moved.
    #[inline]
    pub(crate) unsafe fn restore(&self, data: *mut u8, size: usize) {
        let from = self.saved.as_ptr().cast::<u8>();
        if self.old <= 2 * END_BYTES {
            // SAFETY: 1: duty 1, and no more than was saved; 2: tested.
            return unsafe { copy_small(from, data, self.old.min(size)) };
        }
        // SAFETY: duty 1, and no more than was saved.
        unsafe { ptr::copy_nonoverlapping(from, data, END_BYTES.min(size)) };
        let back = self.old - END_BYTES;
        if let Some(count) = size.checked_sub(back) {
            let to = data.wrapping_add(back);
            // SAFETY: duty 1: `back + count` is `size` at most.
            unsafe {
                ptr::copy_nonoverlapping(from.wrapping_add(END_BYTES), to, count.min(END_BYTES));
            }
        }
    }
}
