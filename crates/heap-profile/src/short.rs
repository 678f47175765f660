//! Owns `Short`: a list that has room for so many elements from its beginning, in memory of the C library, never of the profiled allocator.

use std::ops::{Deref, DerefMut};

use allocator_api2_02::vec::Vec;
use malloc_api::{AllocatorAdapter, LibcMalloc};

/// A list that never grows: an element that has no room is left out, without a call and a way for it to be made room for.
#[derive(Debug)]
pub(crate) struct Short<T>(Vec<T, AllocatorAdapter<LibcMalloc>>);

impl<T: Copy> Short<T> {
    /// An empty list with room for `most` elements; `None` without memory for it.
    pub(crate) fn new(most: usize) -> Option<Self> {
        let mut all = Vec::new_in(AllocatorAdapter::new(LibcMalloc));
        all.try_reserve_exact(most).ok()?;
        Some(Self(all))
    }

    /// Adds an element, if there is room.
    #[inline]
    pub(crate) fn push(&mut self, element: T) {
        if self.0.len() < self.0.capacity() {
            self.0.push(element);
        }
    }

    /// Leaves the first `len` elements.
    #[inline]
    pub(crate) fn truncate(&mut self, len: usize) {
        self.0.truncate(len);
    }

    /// Takes the first `count` elements away.
    pub(crate) fn drain(&mut self, count: usize) {
        self.0.drain(..count.min(self.len()));
    }
}

impl<T> Deref for Short<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T> DerefMut for Short<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}
