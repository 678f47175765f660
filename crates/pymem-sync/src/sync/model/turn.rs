//! Owns [`Turn`]: a point at which loom tries every order of the threads.

use core::cell::UnsafeCell;
use core::mem::ManuallyDrop;
use core::ptr;

use loom::sync::Arc;

/// A point that every access to one object passes, so that loom explores every order of the accesses.
///
/// loom 0.7 remembers one last access for each atomic. A thread that loads before its read-modify-write, as every
/// compare-and-swap loop does, hides with that load what other threads have loaded, and the orders in which its write comes
/// before their loads are never tried: a stack with two pushers and a drainer then passes with Relaxed pushes. Asking a
/// reference count whether it is one conflicts with every other such question, orders no memory, and so brings the lost
/// orders back.
#[derive(Debug)]
pub(super) struct Turn(UnsafeCell<Arc<()>>);

// SAFETY: `take` is the only access, and it reads the handle alone.
unsafe impl Send for Turn {}
// SAFETY: as above; loom runs one thread at a time.
unsafe impl Sync for Turn {}

impl Turn {
    pub(super) fn new() -> Self {
        Self(UnsafeCell::new(Arc::new(())))
    }

    /// Lets any thread that is about to pass go first.
    pub(super) fn take(&self) {
        // SAFETY: the handle lives as long as `self`, and is never written to.
        let handle = unsafe { ptr::read(self.0.get()) };
        // A second handle without a count of its own: it must not be dropped.
        let mut handle = ManuallyDrop::new(handle);
        Arc::get_mut(&mut handle);
    }
}
