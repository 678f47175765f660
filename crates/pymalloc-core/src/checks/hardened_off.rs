//! The checks of feature `hardened`, switched off: the same names, plain links and no checks.

use core::ptr::NonNull;

use malloc_api::Malloc;

use crate::checks::annotate;
use crate::pymalloc::Pymalloc;
use crate::source::ArenaSource;

/// Writes the link of a freed block: its first word.
///
/// # Safety
///
/// 1. `block` is a block of a pool that nobody else uses.
#[inline(always)]
pub(crate) unsafe fn write_link(block: NonNull<u8>, next: *mut u8) {
    // SAFETY: 1: a block has a word at least and is aligned to it.
    annotate::in_free_block(block, || unsafe { block.cast::<*mut u8>().write(next) });
}

/// Reads the link of a freed block.
///
/// # Safety
///
/// 1. [`write_link`] wrote it.
#[inline(always)]
pub(crate) unsafe fn read_link(block: NonNull<u8>) -> *mut u8 {
    // SAFETY: 1.
    annotate::in_free_block(block, || unsafe { block.cast::<*mut u8>().read() })
}

impl<R: Malloc, S: ArenaSource> Pymalloc<R, S> {
    /// Nothing.
    #[inline(always)]
    pub(crate) fn check_live(&self, _block: *mut u8) {}
}
