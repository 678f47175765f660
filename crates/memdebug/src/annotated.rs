//! Owns what a memory checker is told about debug blocks (features `asan`, `valgrind`): header, guard and serial number are
//! nobody's but the hooks', and fresh data is undefined although it is filled. Without a feature nothing is told.

use core::ptr::NonNull;

use malloc_api::annotate;

use crate::block::{HEADER_BYTES, overhead};

/// A part of the block at `base`, which is not null.
fn part(base: *mut u8, offset: usize) -> NonNull<u8> {
    NonNull::new(base.wrapping_add(offset)).unwrap_or(NonNull::dangling())
}

/// The block at `base` is about to be handed out: only its data may be touched.
#[inline(always)]
pub(crate) fn dressed(base: *mut u8, size: usize, serial: bool) {
    if annotate::IS_ON {
        annotate::no_access(part(base, 0), HEADER_BYTES);
        annotate::no_access(part(base, HEADER_BYTES + size), overhead(serial) - HEADER_BYTES);
    }
}

/// The hooks are about to look at header and guard of an intact block, or to fill it.
#[inline(always)]
pub(crate) fn undressed(base: *mut u8, size: usize, serial: bool) {
    if annotate::IS_ON {
        annotate::defined(part(base, 0), HEADER_BYTES);
        annotate::defined(part(base, HEADER_BYTES + size), overhead(serial) - HEADER_BYTES);
    }
}

/// The `size` bytes at `data` are filled, but hold nothing that a program may use.
#[inline(always)]
pub(crate) fn fresh(data: *mut u8, size: usize) {
    if annotate::IS_ON {
        annotate::undefined(part(data, 0), size);
    }
}

/// The freed block at `base` is held back: nobody may touch it.
#[cfg(feature = "std")]
pub(crate) fn held(base: *mut u8, size: usize, serial: bool) {
    annotate::no_access(part(base, 0), size + overhead(serial));
}

/// A block that was held back is about to be verified, or given back.
#[cfg(feature = "std")]
pub(crate) fn unheld(base: *const u8, size: usize, serial: bool) {
    annotate::defined(part(base.cast_mut(), 0), size + overhead(serial));
}
