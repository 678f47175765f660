//! Owns pages straight from the system: what this crate keeps for itself never comes from an allocator that it wraps.

use core::ptr::{self, NonNull};

use malloc_api::page_bytes;

/// Private pages of this process, given back when dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: plain memory; who may touch which part of it is up to the owner.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// At least `bytes` zeroed, writable bytes; `None` if the system has none.
    pub(crate) fn zeroed(bytes: usize) -> Option<Self> {
        Self::map(bytes, libc::PROT_READ | libc::PROT_WRITE)
    }

    /// Address space of at least `bytes` bytes that faults on any access.
    pub(crate) fn reserved(bytes: usize) -> Option<Self> {
        Self::map(bytes, libc::PROT_NONE)
    }

    fn map(bytes: usize, protection: libc::c_int) -> Option<Self> {
        let bytes = bytes.checked_next_multiple_of(page_bytes())?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at a place of the system's choice.
        let start = unsafe { libc::mmap(ptr::null_mut(), bytes, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return None;
        }
        Some(Self { start: NonNull::new(start.cast())?, bytes })
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let start = self.start.as_ptr().cast();
        // SAFETY: mapped by `map` with this size, and not used after.
        if unsafe { libc::munmap(start, self.bytes) } != 0 {
            // A process with too many mappings cannot split one, but its pages go back all the same.
            // SAFETY: as above.
            unsafe { libc::madvise(start, self.bytes, libc::MADV_DONTNEED) };
        }
    }
}

/// An array of `T` in pages of its own, zeroed at first.
#[derive(Debug)]
pub(crate) struct MappedSlice<T> {
    pages: Mapping,
    len: usize,
    of: core::marker::PhantomData<T>,
}

/// Types for which all zero bytes are a value, and that need no drop.
///
/// # Safety
///
/// 1. All bytes zero is a valid value.
pub(crate) unsafe trait Zeroed: Sized {}

// SAFETY: 1: an integer.
unsafe impl Zeroed for u8 {}
// SAFETY: 1: an integer.
unsafe impl Zeroed for u32 {}
// SAFETY: 1: an integer.
unsafe impl Zeroed for u64 {}
// SAFETY: 1: an integer.
unsafe impl Zeroed for u128 {}

impl<T: Zeroed> MappedSlice<T> {
    /// `len` zeroed elements; `None` if the system has no memory.
    pub(crate) fn new(len: usize) -> Option<Self> {
        let pages = Mapping::zeroed(len.checked_mul(size_of::<T>())?.max(1))?;
        Some(Self { pages, len, of: core::marker::PhantomData })
    }
}

impl<T: Zeroed> core::ops::Deref for MappedSlice<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: page-aligned memory for `len` elements, zeroed at first, which is a value (`Zeroed` 1).
        unsafe { core::slice::from_raw_parts(self.pages.start().cast().as_ptr(), self.len) }
    }
}

impl<T: Zeroed> core::ops::DerefMut for MappedSlice<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `self` is borrowed alone.
        unsafe { core::slice::from_raw_parts_mut(self.pages.start().cast().as_ptr(), self.len) }
    }
}
