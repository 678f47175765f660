//! Owns the vocabulary: the malloc family as one object-safe trait, its alignment and its size limit.
//! Leaves `Layout` to `layout.rs` and every implementation to other files.

use core::ptr::NonNull;

/// Alignment in bytes of every block: 16 on 64-bit targets, 8 on 32-bit ones.
///
/// It is `2 * size_of::<usize>()`, what CPython's allocators and the C libraries' `malloc` give.
pub const MIN_ALIGN: usize = 2 * size_of::<usize>();

/// Largest request in bytes that an allocator may serve: `isize::MAX`.
///
/// A request above it answers `None` without reaching any backend.
pub const MAX_REQUEST: usize = isize::MAX as usize;

/// The malloc family: C's names, C's contract, and CPython's rule that zero bytes are a block too.
///
/// Sizes are in bytes. `Option<NonNull<u8>>` has the ABI of a C pointer, so a C shim converts nothing.
///
/// | method | contract |
/// | --- | --- |
/// | [`malloc`](Malloc::malloc) | aligned to [`MIN_ALIGN`]; 0 gives a distinct block; more than [`MAX_REQUEST`] gives `None` |
/// | [`calloc`](Malloc::calloc) | zeroed; overflow gives `None`; zero as above |
/// | [`realloc`](Malloc::realloc) | `None` acts as `malloc`; 0 never frees; on `None` the old block is untouched |
/// | [`free`](Malloc::free) | `None` does nothing |
///
/// The trait does not imply `Sync`: a static asks for it, and a pool without a lock does not have it.
/// `testing::conformance` (feature `testing`) checks every line of the table.
///
/// # Safety
///
/// An implementation promises that
///
/// 1. a block it returns is valid for reads and writes of the requested size, aligned to [`MIN_ALIGN`], and
///    overlaps no other live block, until the block is given back to `free` or successfully `realloc`ated, or the
///    allocator and all its clones are dropped;
/// 2. `calloc`ed bytes are zero, and `realloc` keeps the first `min(old, new)` bytes;
/// 3. a failed `realloc` leaves the old block live and unchanged;
/// 4. no method unwinds, and none allocates through the allocator that it implements;
/// 5. moving the allocator leaves its blocks live, and a clone of it serves the same blocks as the original.
pub unsafe trait Malloc {
    /// Allocates `size` bytes with undefined content.
    ///
    /// 0 gives a distinct block that must be freed. `None` means out of memory, or `size > MAX_REQUEST`.
    fn malloc(&self, size: usize) -> Option<NonNull<u8>>;

    /// Allocates `nelem * elsize` zeroed bytes.
    ///
    /// A product of 0 gives a distinct block that must be freed. `None` means out of memory, or a product that
    /// overflows or exceeds [`MAX_REQUEST`].
    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>>;

    /// Resizes the block at `ptr` to `new_size` bytes, keeping the first `min(old, new)` bytes.
    ///
    /// `ptr = None` acts as `malloc(new_size)`. `new_size = 0` does not free: it gives a live block. `None` means that
    /// the request could not be met; the old block is then untouched and still the caller's.
    ///
    /// # Safety
    ///
    /// 1. `ptr` is `None` or a live block of this allocator.
    /// 2. After a successful call the old pointer is dead, even where it equals the new one.
    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>>;

    /// Frees the block at `ptr`; `None` does nothing.
    ///
    /// # Safety
    ///
    /// 1. `ptr` is `None` or a live block of this allocator.
    /// 2. The block is not used afterwards.
    unsafe fn free(&self, ptr: Option<NonNull<u8>>);
}
