//! Stands where `annotate.rs` does in a build without a memory checker: nothing, and no red zone.

use core::ptr::NonNull;

use malloc_api::Malloc;

use crate::arena::ArenaPtr;
use crate::pymalloc::Pymalloc;
use crate::size_class::SizeClass;
use crate::source::ArenaSource;

/// Whether blocks are annotated.
#[cfg(feature = "hardened")]
pub(crate) const IS_ON: bool = false;

/// The bytes that a request needs in a pool.
#[inline(always)]
pub(crate) const fn padded(size: usize) -> usize {
    size
}

/// Calls `f`.
#[inline(always)]
pub(crate) fn in_free_block<T>(_block: NonNull<u8>, f: impl FnOnce() -> T) -> T {
    f()
}

/// Nothing.
#[inline(always)]
pub(crate) fn in_transit(_block: NonNull<u8>) {}

/// Nothing.
#[inline(always)]
pub(crate) fn pool_opened(_start: NonNull<u8>, _bytes: usize) {}

/// Nothing.
#[inline(always)]
pub(crate) fn arena_closed(_arena: ArenaPtr) {}

/// The size of a block of the pools.
#[inline(always)]
pub(crate) fn live_size(_block: NonNull<u8>, class: SizeClass) -> usize {
    class.size()
}

/// Nothing.
#[inline(always)]
pub(crate) fn block_resized(_block: NonNull<u8>, _class: SizeClass, _new: usize) {}

impl<R: Malloc, S: ArenaSource> Pymalloc<R, S> {
    /// Nothing.
    #[inline(always)]
    pub(crate) fn block_allocated(&self, _block: NonNull<u8>, _size: usize) {}

    /// Nothing.
    #[inline(always)]
    pub(crate) fn block_freed(&self, _block: NonNull<u8>) {}
}
