//! Owns what a memory checker is told about blocks of the pools (features `asan`, `valgrind`), and the red zone that each
//! block gets for it: the last [`RED_ZONE_BYTES`] of its class's size, in whose last word the size that was asked for is
//! kept. Twin: `annotate_off.rs`.

use core::ptr::NonNull;

use malloc_api::Malloc;
use malloc_api::annotate::{self, RED_ZONE_BYTES};

use crate::arena::ArenaPtr;
use crate::config::{ARENA_BYTES, GRAIN_BYTES};
use crate::pymalloc::Pymalloc;
use crate::size_class::SizeClass;
use crate::source::ArenaSource;

const WORD_BYTES: usize = size_of::<usize>();
const _: () = assert!(RED_ZONE_BYTES >= WORD_BYTES && RED_ZONE_BYTES % GRAIN_BYTES == 0);

/// Whether blocks are annotated.
#[cfg(feature = "hardened")]
pub(crate) const IS_ON: bool = true;

/// The bytes that a request needs in a pool.
#[inline]
pub(crate) const fn padded(size: usize) -> usize {
    if size == 0 { 0 } else { size.saturating_add(RED_ZONE_BYTES) }
}

/// Calls `f`, which reads or writes the words that the allocator keeps at the front of a free block.
#[inline]
pub(crate) fn in_free_block<T>(block: NonNull<u8>, f: impl FnOnce() -> T) -> T {
    annotate::defined(block, GRAIN_BYTES);
    let value = f();
    annotate::no_access(block, GRAIN_BYTES);
    value
}

/// A block is on its way back: the stack that carries it writes to its first word.
#[inline]
pub(crate) fn in_transit(block: NonNull<u8>) {
    annotate::undefined(block, WORD_BYTES);
}

/// Nobody may touch a new pool but through blocks.
pub(crate) fn pool_opened(start: NonNull<u8>, bytes: usize) {
    annotate::no_access(start, bytes);
}

/// Whoever gets the memory of an arena next may use it, and expects zeros where it was never written.
pub(crate) fn arena_closed(arena: ArenaPtr) {
    annotate::defined(arena.address(), ARENA_BYTES);
}

/// Calls `f` with the place of the size that was asked for.
fn with_size<T>(block: NonNull<u8>, class: SizeClass, f: impl FnOnce(NonNull<usize>) -> T) -> T {
    // SAFETY: the last word of a block of this class.
    let place = unsafe { block.add(class.size() - WORD_BYTES) };
    annotate::defined(place, WORD_BYTES);
    let value = f(place.cast());
    annotate::no_access(place, WORD_BYTES);
    value
}

fn set_size(block: NonNull<u8>, class: SizeClass, size: usize) {
    // SAFETY: a word of a block of ours, aligned as every class's size is.
    with_size(block, class, |place| unsafe { place.write(size) });
}

/// The size that was asked for, of a live block of the pools.
pub(crate) fn live_size(block: NonNull<u8>, class: SizeClass) -> usize {
    // SAFETY: `block_allocated` wrote it.
    with_size(block, class, |place| unsafe { place.read() })
}

/// A block of the pools has another size where it is.
pub(crate) fn block_resized(block: NonNull<u8>, class: SizeClass, new: usize) {
    let old = live_size(block, class);
    annotate::resized(block, old, new, class.size());
    set_size(block, class, new);
}

impl<R: Malloc, S: ArenaSource> Pymalloc<R, S> {
    /// A block was handed out from a pool.
    pub(crate) fn block_allocated(&self, block: NonNull<u8>, size: usize) {
        let Some(class) = self.map.class_of(block.addr().get()) else { return };
        set_size(block, class, size);
        annotate::allocated(block, size);
    }

    /// A block came back, to a pool or to the fallback.
    pub(crate) fn block_freed(&self, block: NonNull<u8>) {
        let Some(class) = self.map.class_of(block.addr().get()) else { return };
        // A second free is reported here, as the use of a freed block.
        // SAFETY: a block of the pools has a byte.
        let _ = unsafe { block.as_ptr().read_volatile() };
        annotate::freed(block, class.size());
    }
}
