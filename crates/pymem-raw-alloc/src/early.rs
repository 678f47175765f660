//! Owns the room for blocks of a program that has not started its interpreter yet. Nothing comes back to the room: a block is known by
//! its address for ever, whatever serves later.

use core::alloc::Layout;
use core::cell::UnsafeCell;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// A program in Rust takes some hundred KiB before it starts an interpreter; pages that nobody uses take no memory.
const BYTES: usize = 1 << 20;

#[repr(C, align(4096))]
struct Room(UnsafeCell<[u8; BYTES]>);

// SAFETY: nothing reads or writes the room here, and each byte of it is handed out once.
unsafe impl Sync for Room {}

static ROOM: Room = Room(UnsafeCell::new([0; BYTES]));

/// How many bytes of the room are handed out.
static USED: AtomicUsize = AtomicUsize::new(0);

/// A block of zeros for `layout`, whose size is not 0; `None` when the room is too small for it.
pub(crate) fn allocate(layout: Layout) -> Option<NonNull<u8>> {
    let first = ROOM.0.get().cast::<u8>();
    let place = |used: usize| used + first.wrapping_add(used).align_offset(layout.align());
    let end = |used: usize| place(used).checked_add(layout.size()).filter(|end| *end <= BYTES);
    let used = USED.fetch_update(Relaxed, Relaxed, end).ok()?;
    NonNull::new(first.wrapping_add(place(used)))
}

/// Is the block one of the room?
#[inline]
pub(crate) fn holds(block: *mut u8) -> bool {
    block.addr().wrapping_sub(ROOM.0.get().addr()) < BYTES
}
