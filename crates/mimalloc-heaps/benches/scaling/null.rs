//! Owns the harness' own cost: an allocator that does next to nothing, in memory that no other thread touches.

use std::cell::{Cell, UnsafeCell};
use std::ptr::NonNull;

use malloc_api::{MIN_ALIGN, Malloc};

/// More than the loads' largest block twice over, and little enough for a processor's own cache.
const RING_WORDS: usize = 1 << 13;
const RING_BYTES: usize = RING_WORDS * size_of::<u128>();

thread_local! {
    static RING: UnsafeCell<[u128; RING_WORDS]> = const { UnsafeCell::new([0; RING_WORDS]) };
    static NEXT: Cell<usize> = const { Cell::new(0) };
}

/// Hands out a ring of memory, round and round; frees nothing. Only for a load that does not care what it reads.
#[derive(Clone, Copy)]
pub(crate) struct Null;

// SAFETY: 1: blocks lie within the calling thread's ring, aligned as words of it; they overlap after a round, which a load
// that does not compare what it reads cannot tell; 2 and 3: the load asks for no other; 4: nothing unwinds;
// 5: each thread has a ring of its own, and a free touches none.
unsafe impl Malloc for Null {
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        let size = size.next_multiple_of(MIN_ALIGN);
        let start = NEXT.get();
        let start = if start + size > RING_BYTES { 0 } else { start };
        NEXT.set(start + size);
        let ring = RING.with(|ring| NonNull::new(ring.get().cast::<u8>()))?;
        // SAFETY: the sum of `start` and the size is at most the ring's length, as no block is longer than the ring.
        Some(unsafe { ring.add(start) })
    }

    fn calloc(&self, _nelem: usize, _elsize: usize) -> Option<NonNull<u8>> {
        None
    }

    unsafe fn realloc(&self, _ptr: Option<NonNull<u8>>, _new_size: usize) -> Option<NonNull<u8>> {
        None
    }

    unsafe fn free(&self, _ptr: Option<NonNull<u8>>) {}
}
