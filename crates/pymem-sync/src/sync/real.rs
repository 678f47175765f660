//! The real face: `core`'s atomics, and planted faults that compile to nothing.

pub(crate) use core::hint::spin_loop;
#[cfg(not(feature = "std"))]
pub(crate) use core::hint::{spin_loop as yield_now, spin_loop as nap};
pub(crate) use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU16, Ordering};
#[cfg(feature = "std")]
pub(crate) use core::sync::atomic::{AtomicU32, AtomicU64};
#[cfg(feature = "std")]
pub(crate) use std::thread::yield_now;

use super::site::Site;

/// Zeroed memory is an atomic with 0, so that what was never stored to takes no page.
#[cfg(feature = "std")]
pub(crate) const ZERO_IS_NEW: bool = true;

/// A sequentially consistent fence: of two threads that write, fence and read, at least one sees the other's write.
#[cfg(all(feature = "std", not(pymem_tsan)))]
#[inline(always)]
pub(crate) fn fence(_site: Site) {
    core::sync::atomic::fence(Ordering::SeqCst);
}

/// The fence for ThreadSanitizer, which does not know fences: for the threads that come here as strong, and slower.
///
/// Two cases: of two calls one comes first in the modification order of the word, and the second acquires what the first
/// released, so the second thread's reads see the first one's writes.
#[cfg(all(feature = "std", pymem_tsan))]
pub(crate) fn fence(_site: Site) {
    static MEETING: AtomicU64 = AtomicU64::new(0);
    MEETING.fetch_add(1, Ordering::SeqCst);
}

/// Keeps the order of this thread's writes for whoever interrupts it, as a fork does: for the compiler alone.
#[inline(always)]
pub(crate) fn interrupt_fence(_site: Site) {
    core::sync::atomic::compiler_fence(Ordering::Release);
}

/// Sleeps for 50 microseconds.
#[cfg(feature = "std")]
pub(crate) fn nap() {
    std::thread::sleep(core::time::Duration::from_micros(50));
}

/// Participants' slots in one chunk of the list.
#[cfg(feature = "std")]
pub(crate) const CHUNK_SLOTS: usize = 8;

/// Only the model face plants faults.
#[doc(hidden)]
pub const fn plant(_site: Option<Site>) {}

/// `ordering` as written: its partner and its model are named where it is used.
#[inline(always)]
pub(crate) const fn ordering(_site: Site, ordering: Ordering) -> Ordering {
    ordering
}

/// `right` as written.
#[inline(always)]
pub(crate) const fn chosen<T: Copy>(_site: Site, right: T, _planted: T) -> T {
    right
}

/// Stands for plain memory that must have been written before it is read; checked in the model face.
#[cfg(feature = "std")]
#[derive(Debug)]
pub(crate) struct Witness;

#[cfg(feature = "std")]
impl Witness {
    /// Written now.
    pub(crate) const fn new() -> Self {
        Self
    }

    /// Read now.
    #[inline(always)]
    pub(crate) const fn see(&self) {}
}

/// Declares constructors that are `const` here and plain in the model face, whose atomics register themselves.
macro_rules! const_in_real {
    ($($(#[$meta:meta])* $vis:vis const fn $name:ident($($arguments:tt)*) -> $result:ty $body:block)+) => {
        $($(#[$meta])* $vis const fn $name($($arguments)*) -> $result $body)+
    };
}
pub(crate) use const_in_real;

/// An array of equal elements, built at compile time.
macro_rules! array_in_face {
    ($element:expr; $length:expr) => {
        [const { $element }; $length]
    };
}
pub(crate) use array_in_face;
