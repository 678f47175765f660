//! Owns the link of a freed block to the next one: the block's first word, which feature `hardened` encodes.

use core::ptr::NonNull;

use crate::checks::{annotate, hardened};

/// Writes the link of a freed block into its first word; feature `hardened` encodes the link.
///
/// # Safety
///
/// 1. `block` is a block of a pool that nobody else uses.
#[inline(always)]
pub(crate) unsafe fn write_link(block: NonNull<u8>, next: *mut u8) {
    if hardened::IS_ON {
        // SAFETY: 1.
        unsafe { hardened::write_link(block, next) };
    } else {
        // SAFETY: 1: a block has a word at least and is aligned to it.
        annotate::in_free_block(block, || unsafe { block.cast::<*mut u8>().write(next) });
    }
}

/// Reads the link of a freed block.
///
/// # Safety
///
/// 1. [`write_link`] wrote it.
#[inline(always)]
pub(crate) unsafe fn read_link(block: NonNull<u8>) -> *mut u8 {
    if hardened::IS_ON {
        // SAFETY: 1.
        unsafe { hardened::read_link(block) }
    } else {
        // SAFETY: 1.
        annotate::in_free_block(block, || unsafe { block.cast::<*mut u8>().read() })
    }
}
