//! Owns the vocabulary: the malloc family as one object-safe trait, its alignment and its size limit, and [`Forward`], another
//! name for an allocator. Leaves `Layout` to `layout.rs`.

use core::ptr::NonNull;

/// Alignment in bytes of every block: 16 on 64-bit targets, 8 on 32-bit ones.
///
/// CPython's allocators and the C libraries' `malloc` give `2 * size_of::<usize>()` too.
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

/// An allocator whose four calls are those of an allocator that it refers to.
///
/// Every `Forward` type is a [`Malloc`]. A wrapper that changes a call implements [`Malloc`] itself.
///
/// # Safety
///
/// An implementation promises that
///
/// 1. [`target`](Forward::target) of a value is always the same allocator, also after the value was moved;
/// 2. clones of the value have the same target;
/// 3. `target` neither unwinds nor allocates through the allocator.
pub unsafe trait Forward {
    /// The allocator that serves the calls.
    type Target: Malloc + ?Sized;

    /// The allocator that serves the calls.
    fn target(&self) -> &Self::Target;
}

// SAFETY: 1 and 2: a reference and its copies refer to one allocator; 3: a copy of a pointer.
unsafe impl<A: Malloc + ?Sized> Forward for &A {
    type Target = A;

    #[inline]
    fn target(&self) -> &A {
        self
    }
}

// SAFETY: each method is the same method of one allocator (duties 1 and 2 of `Forward`), which keeps promises 1 to 5;
// finding the allocator adds nothing (duty 3).
unsafe impl<F: Forward> Malloc for F {
    #[inline]
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        self.target().malloc(size)
    }

    #[inline]
    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        self.target().calloc(nelem, elsize)
    }

    #[inline]
    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        // SAFETY: the caller's duties 1 and 2 are those of the target's `realloc`.
        unsafe { self.target().realloc(ptr, new_size) }
    }

    #[inline]
    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        // SAFETY: the caller's duties 1 and 2 are those of the target's `free`.
        unsafe { self.target().free(ptr) }
    }
}
