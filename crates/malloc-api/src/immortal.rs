//! Owns values that live for ever, in memory of the C library.
//!
//! Allocator records, and the allocators behind them, are never given back. Their memory comes from the C library and not
//! from the program's global allocator, which may be the allocator that is being set up.

extern crate std;

use std::alloc::{GlobalAlloc, Layout, System, handle_alloc_error};

/// Moves `value` to memory of the C library, for ever.
///
/// A value of no bytes takes no memory. Aborts, as `Box::new` does, when there is none.
#[must_use]
pub fn leak<T: 'static>(value: T) -> &'static T {
    let layout = Layout::new::<T>();
    if layout.size() == 0 {
        return std::boxed::Box::leak(std::boxed::Box::new(value));
    }
    // SAFETY: the layout's size is not zero.
    let place = unsafe { System.alloc(layout) }.cast::<T>();
    if place.is_null() {
        handle_alloc_error(layout);
    }
    // SAFETY: fresh memory of the layout of `T`.
    unsafe { place.write(value) };
    // SAFETY: initialised above, never freed, and shared from here on.
    unsafe { &*place }
}
