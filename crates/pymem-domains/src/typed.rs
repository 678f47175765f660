//! Owns the typed helpers over any allocator: arrays, strings, and their overflow rules.

use core::ffi::{CStr, c_char};
use core::ptr::{self, NonNull};

use malloc_api::{MAX_REQUEST, MIN_ALIGN, Malloc};
use thiserror::Error;

/// There was no memory, or the request was too large; whatever was allocated before is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "out of memory, or a request above isize::MAX bytes; the old block is unchanged: free memory, or ask for less"
)]
pub struct OutOfMemory;

/// CPython's typed helpers, for every [`Malloc`].
///
/// Blocks are given back to `free` of the same allocator, or resized by it; nothing is ever dropped.
pub trait TypedMalloc: Malloc {
    /// Allocates `n` values of `T`, uninitialised; C's `PyMem_New`.
    ///
    /// `n` counts values. No value, or values of no size, give a distinct block that must be freed. `None` means out of
    /// memory, or more than [`MAX_REQUEST`] bytes. A `T` aligned to more than [`MIN_ALIGN`] does not compile.
    fn new_array<T>(&self, n: usize) -> Option<NonNull<T>> {
        Some(self.malloc(array_bytes::<T>(n)?)?.cast())
    }

    /// Allocates `n` values of `T` with all bytes zero.
    ///
    /// As [`new_array`](TypedMalloc::new_array) otherwise.
    fn new_zeroed_array<T>(&self, n: usize) -> Option<NonNull<T>> {
        array_bytes::<T>(n)?;
        Some(self.calloc(n, size_of::<T>())?.cast())
    }

    /// Resizes the array at `array` to `n` values of `T`; C's `PyMem_Resize` without its trap.
    ///
    /// C assigns the result to the pointer even when it is null, and the old block is lost; here `array` is changed
    /// only on success. The first `min(old, n)` values keep their bytes. `None` in `array` allocates a new array.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`]: `array` is unchanged, still live and still the caller's.
    ///
    /// # Safety
    ///
    /// 1. `array` is `None` or a live block of this allocator.
    /// 2. After success the old pointer is dead, even where it equals the new one.
    ///
    /// # Examples
    ///
    /// ```
    /// use malloc_api::{LibcMalloc, Malloc};
    /// use pymem_domains::{OutOfMemory, TypedMalloc};
    ///
    /// let mut array = LibcMalloc.new_array::<u64>(4);
    /// let old = array;
    /// // SAFETY: 1. the array is live and LibcMalloc's. 2. on failure nothing dies.
    /// let result = unsafe { LibcMalloc.resize(&mut array, usize::MAX) };
    /// assert_eq!((result, array), (Err(OutOfMemory), old));
    /// // SAFETY: still live, and not used again.
    /// unsafe { LibcMalloc.free(array.map(|array| array.cast())) };
    /// ```
    unsafe fn resize<T>(
        &self,
        array: &mut Option<NonNull<T>>,
        n: usize,
    ) -> Result<(), OutOfMemory> {
        let bytes = array_bytes::<T>(n).ok_or(OutOfMemory)?;
        // SAFETY: the caller's duties 1 and 2 are those of `realloc`.
        let new = unsafe { self.realloc(array.map(NonNull::cast), bytes) }.ok_or(OutOfMemory)?;
        *array = Some(new.cast());
        Ok(())
    }

    /// Copies a C string, its closing NUL included.
    ///
    /// `None` means out of memory.
    fn duplicate_c_str(&self, text: &CStr) -> Option<NonNull<c_char>> {
        self.duplicate(text.to_bytes_with_nul()).map(NonNull::cast)
    }

    /// Copies a wide string of `text.len()` characters and adds a closing zero.
    ///
    /// `None` means out of memory, or a copy above [`MAX_REQUEST`] bytes.
    fn duplicate_wide(&self, text: &[libc::wchar_t]) -> Option<NonNull<libc::wchar_t>> {
        let copy = self.new_array::<libc::wchar_t>(text.len().checked_add(1)?)?;
        // SAFETY: the copy has room for `text.len() + 1` characters and is new, so they do not overlap.
        unsafe { ptr::copy_nonoverlapping(text.as_ptr(), copy.as_ptr(), text.len()) };
        // SAFETY: as above: the last of the `text.len() + 1` characters.
        let end = unsafe { copy.add(text.len()) };
        // SAFETY: as above.
        unsafe { end.write(0) };
        Some(copy)
    }

    /// Copies `bytes` as they are; no bytes give a distinct block.
    ///
    /// `None` means out of memory.
    fn duplicate(&self, bytes: &[u8]) -> Option<NonNull<u8>> {
        let copy = self.malloc(bytes.len())?;
        // SAFETY: the copy has room for the bytes and is new, so they do not overlap.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), copy.as_ptr(), bytes.len()) };
        Some(copy)
    }
}

impl<A: Malloc + ?Sized> TypedMalloc for A {}

/// The size of `n` values of `T` in bytes, up to [`MAX_REQUEST`].
fn array_bytes<T>(n: usize) -> Option<usize> {
    const { assert!(align_of::<T>() <= MIN_ALIGN, "malloc does not align so far; allocate by layout") };
    n.checked_mul(size_of::<T>()).filter(|bytes| *bytes <= MAX_REQUEST)
}
