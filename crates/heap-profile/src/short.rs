//! Owns `Short`: a list that has room for so many elements from its beginning, in memory of the C library, never of the profiled allocator.

use std::mem::size_of;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::slice;

use malloc_api::{LibcMalloc, Malloc};

/// A list that never grows: an element that has no room is left out, without a call and a way for it to be made room for.
///
/// Its ends are kept as addresses, as whoever looks at the last elements needs no number then. In front of the first element is another one,
/// which is none of the list, so that the last of an empty list can be read.
#[derive(Debug)]
pub(crate) struct Short<T> {
    first: NonNull<T>,
    end: NonNull<T>,
    /// How many there is room for.
    most: usize,
}

// SAFETY: the elements belong to the list alone.
unsafe impl<T: Send> Send for Short<T> {}

impl<T: Copy> Short<T> {
    /// An empty list with room for `most` elements, and what is in front of it; `None` without memory for it.
    pub(crate) fn new(most: usize, in_front: T) -> Option<Self> {
        const { assert!(size_of::<T>() > 0 && align_of::<T>() <= size_of::<usize>()) };
        let bytes = most.checked_add(1)?.checked_mul(size_of::<T>())?;
        let front: NonNull<T> = LibcMalloc.malloc(bytes)?.cast();
        // SAFETY: room for `most + 1` elements, aligned as every block of the C library is.
        unsafe { front.write(in_front) };
        // SAFETY: within the block, or at its end.
        let first = unsafe { front.add(1) };
        Some(Self { first, end: first, most })
    }

    /// Adds an element, if there is room.
    #[inline]
    pub(crate) fn push(&mut self, element: T) {
        if self.len() < self.most {
            // SAFETY: there is room behind the last element.
            unsafe { self.end.write(element) };
            // SAFETY: as above.
            self.end = unsafe { self.end.add(1) };
        }
    }

    /// Leaves the first `len` elements.
    #[inline]
    pub(crate) fn truncate(&mut self, len: usize) {
        if len < self.len() {
            // SAFETY: an element of the list.
            self.end = unsafe { self.first.add(len) };
        }
    }

    /// Takes the first `count` elements away.
    pub(crate) fn drain(&mut self, count: usize) {
        let count = count.min(self.len());
        self.copy_within(count.., 0);
        self.truncate(self.len() - count);
    }

    /// Where the first element is, or would be.
    #[inline(always)]
    pub(crate) const fn first(&self) -> NonNull<T> {
        self.first
    }

    /// The end of the last element, in front of which there is always one to read.
    #[inline(always)]
    pub(crate) const fn end(&self) -> NonNull<T> {
        self.end
    }

    /// Leaves the elements up to an end that the list has, or had when it was longer.
    ///
    /// # Safety
    ///
    /// 1. `end` is behind an element of the list, or the list's own.
    #[inline(always)]
    pub(crate) unsafe fn end_at(&mut self, end: NonNull<T>) {
        self.end = end;
    }
}

impl<T> Drop for Short<T> {
    fn drop(&mut self) {
        // SAFETY: the block begins one element before the first one.
        let front = unsafe { self.first.sub(1) };
        // SAFETY: 1, 2: `new` got it, and nothing leads there any more.
        unsafe { LibcMalloc.free(Some(front.cast())) };
    }
}

impl<T> Deref for Short<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        let len = (self.end.addr().get() - self.first.addr().get()) / size_of::<T>();
        // SAFETY: so many elements were written.
        unsafe { slice::from_raw_parts(self.first.as_ptr(), len) }
    }
}

impl<T> DerefMut for Short<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        let len = self.len();
        // SAFETY: as above.
        unsafe { slice::from_raw_parts_mut(self.first.as_ptr(), len) }
    }
}
