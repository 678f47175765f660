//! Owns memory that is never given back: records, hooks and the state behind a `Domains`.
//!
//! It comes from the C library, never from the program's global allocator, which may be one of the domains.

use std::alloc::{GlobalAlloc, Layout, System, handle_alloc_error};

/// Moves `value` to memory of the C library, for ever. Aborts when there is none.
pub(crate) fn leak<T: 'static>(value: T) -> &'static T {
    let layout = Layout::new::<T>();
    if layout.size() == 0 {
        return Box::leak(Box::new(value));
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
