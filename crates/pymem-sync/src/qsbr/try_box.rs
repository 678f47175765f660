//! Owns a box that may find no memory, where `Box::new` would end the process.

use std::alloc::{Layout, alloc};

/// `value` on the heap; `None` if there is no memory.
pub(super) fn try_box<T>(value: T) -> Option<Box<T>> {
    const { assert!(size_of::<T>() != 0, "the layout of a box that is allocated") };
    // SAFETY: the layout's size is not zero.
    let place = unsafe { alloc(Layout::new::<T>()) }.cast::<T>();
    if place.is_null() {
        return None;
    }
    // SAFETY: fresh memory of the layout of `T`.
    unsafe { place.write(value) };
    // SAFETY: from the global allocator with the layout of `T`, and written.
    Some(unsafe { Box::from_raw(place) })
}
