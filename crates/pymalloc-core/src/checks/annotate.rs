//! Owns what a memory checker is told about blocks of the pools (features `asan`, `valgrind`), and the red zone that each
//! block gets for it: the last [`RED_ZONE_BYTES`] of its class's size. The zone's last word keeps the size that was
//! asked for. Where [`IS_ON`] is false every function does nothing, and there is no red zone.

use core::ptr::NonNull;

use malloc_api::annotate::{self, RED_ZONE_BYTES};

use crate::config::{ARENA_BYTES, GRAIN_BYTES};
use crate::size_class::SizeClass;

pub(crate) use malloc_api::annotate::IS_ON;

const WORD_BYTES: usize = size_of::<usize>();
const _: () = assert!(!IS_ON || RED_ZONE_BYTES.checked_sub(WORD_BYTES).is_some());
const _: () = assert!(RED_ZONE_BYTES % GRAIN_BYTES == 0);

/// The bytes that a request needs in a pool, its red zone included; 0 for 0.
#[inline(always)]
pub(crate) const fn padded(size: usize) -> usize {
    if !IS_ON || size == 0 { size } else { size.saturating_add(RED_ZONE_BYTES) }
}

/// Calls `f`, which reads or writes the words that the allocator keeps at the front of a free block.
#[inline(always)]
pub(crate) fn in_free_block<T>(block: NonNull<u8>, f: impl FnOnce() -> T) -> T {
    annotate::defined(block, GRAIN_BYTES);
    let value = f();
    annotate::no_access(block, GRAIN_BYTES);
    value
}

/// A block is on its way back: the stack that carries it writes to its first word.
#[inline(always)]
pub(crate) fn in_transit(block: NonNull<u8>) {
    annotate::undefined(block, WORD_BYTES);
}

/// Nobody may touch a new pool but through blocks.
pub(crate) fn pool_opened(start: NonNull<u8>, bytes: usize) {
    annotate::no_access(start, bytes);
}

/// Whoever gets the memory of an arena next may use it, and expects zeros where it was never written.
pub(crate) fn arena_closed(arena: NonNull<u8>) {
    annotate::defined(arena, ARENA_BYTES);
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

/// The size that was asked for, of a live block of the pools; without a checker the size of its class.
#[inline(always)]
pub(crate) fn live_size(block: NonNull<u8>, class: SizeClass) -> usize {
    if !IS_ON {
        return class.size();
    }
    // SAFETY: `block_allocated` wrote it.
    with_size(block, class, |place| unsafe { place.read() })
}

/// A block of the pools has another size where it is.
#[inline(always)]
pub(crate) fn block_resized(block: NonNull<u8>, class: SizeClass, new: usize) {
    if IS_ON {
        annotate::resized(block, live_size(block, class), new, class.size());
        set_size(block, class, new);
    }
}

/// A block of a pool was handed out.
pub(crate) fn block_allocated(block: NonNull<u8>, class: SizeClass, size: usize) {
    set_size(block, class, size);
    annotate::allocated(block, size);
}

/// A block came back to its pool. A second free is reported here, as the use of a freed block.
pub(crate) fn block_freed(block: NonNull<u8>, class: SizeClass) {
    // SAFETY: a block of the pools has a byte.
    let _ = unsafe { block.as_ptr().read_volatile() };
    annotate::freed(block, class.size());
}
