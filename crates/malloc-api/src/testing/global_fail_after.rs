//! Owns the failure of Rust's own allocations: those of boxes, vectors and text.

extern crate std;

use core::cell::Cell;

use std::alloc::{GlobalAlloc, Layout, System};

/// The system's allocator for a test program; a thread's allocations fail once it has used up its limit.
///
/// Use it as the `#[global_allocator]`, and [`FailAfter`](crate::testing::FailAfter) as the allocator under test. Frees
/// never fail. A thread has a limit only inside [`GlobalFailAfter::with`].
#[derive(Debug)]
pub struct GlobalFailAfter;

std::thread_local! {
    /// Allocations of this thread that still succeed.
    static LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
}

impl GlobalFailAfter {
    /// Runs `body`, in which the calling thread's first `count` allocations succeed and all others fail; 0 fails all.
    ///
    /// The previous limit applies again when `body` returns or panics.
    pub fn with<T>(count: usize, body: impl FnOnce() -> T) -> T {
        let _before = Restore(LEFT.replace(count));
        body()
    }
}

/// Restores a limit when it is dropped.
struct Restore(usize);

impl Drop for Restore {
    fn drop(&mut self) {
        LEFT.set(self.0);
    }
}

// SAFETY: the system's allocator, or a failure.
unsafe impl GlobalAlloc for GlobalFailAfter {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let left = LEFT.get();
        if left == 0 {
            return core::ptr::null_mut();
        }
        LEFT.set(left - 1);
        // SAFETY: the caller's contract is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract is the same.
        unsafe { System.dealloc(ptr, layout) }
    }
}
