//! Owns size *and alignment* over `Malloc`, once: over-aligned blocks, and the four operations on a `Layout` that both
//! bridges share. Leaves the traits to `global.rs` and `allocator.rs`.
//!
//! A block whose alignment is at most [`MIN_ALIGN`] is a plain block. Another one is over-allocated by its alignment,
//! and the way back stands right below it:
//!
//! ```text
//! base, a plain block of size + align bytes
//! |                                  what the caller gets, a multiple of align
//! |                                  |
//! +---- - - ----+---------+----------+------------ - - ------------+--- - - ---+
//! | unused      | base    | size     | size bytes                  | unused    |
//! +---- - - ----+---------+----------+------------ - - ------------+--- - - ---+
//! |             |<--- a Header --->  |
//! |<-- offset, MIN_ALIGN to align -->|
//! ```

use core::alloc::Layout;
use core::ptr::NonNull;

use crate::{MIN_ALIGN, Malloc};

/// Stands below every over-aligned block.
#[derive(Clone, Copy)]
struct Header {
    /// What `Malloc` answered.
    base: NonNull<u8>,
    /// The size in bytes that the caller asked for.
    size: usize,
}

// The header fits between the base and the first aligned address after it, and is aligned there.
const _: () = assert!(size_of::<Header>() <= MIN_ALIGN && MIN_ALIGN % align_of::<Header>() == 0);

/// Allocates `size` bytes with undefined content, aligned to `align` bytes.
///
/// 0 bytes give a distinct block that must be freed. Up to [`MIN_ALIGN`] it is `malloc` and costs nothing; above, the
/// block takes `align` bytes more. `None` means out of memory, an `align` that is not a power of two, or more than
/// [`MAX_REQUEST`](crate::MAX_REQUEST) bytes together with them.
///
/// # Examples
///
/// ```
/// use malloc_api::{LibcMalloc, aligned_free, aligned_malloc};
///
/// let page = aligned_malloc(&LibcMalloc, 4096, 100).expect("out of memory");
/// assert_eq!(page.addr().get() % 4096, 0);
/// // SAFETY: (1) `page` is live and has this alignment; (2) it is not used afterwards.
/// unsafe { aligned_free(&LibcMalloc, Some(page), 4096) };
/// ```
#[inline]
pub fn aligned_malloc<A: Malloc + ?Sized>(
    allocator: &A,
    align: usize,
    size: usize,
) -> Option<NonNull<u8>> {
    if is_plain(align) {
        return allocator.malloc(size);
    }
    let base = allocator.malloc(over_allocated(align, size)?)?;
    // SAFETY: (1) `base` is a fresh block of `size + align` bytes; (2) `align` was checked by `over_allocated`.
    Some(unsafe { place(base, align, size) })
}

/// Allocates `nelem * elsize` zeroed bytes, aligned to `align` bytes.
///
/// As [`aligned_malloc`], and `None` also for a product that overflows.
#[inline]
pub fn aligned_calloc<A: Malloc + ?Sized>(
    allocator: &A,
    align: usize,
    nelem: usize,
    elsize: usize,
) -> Option<NonNull<u8>> {
    if is_plain(align) {
        return allocator.calloc(nelem, elsize);
    }
    let size = nelem.checked_mul(elsize)?;
    let base = allocator.calloc(1, over_allocated(align, size)?)?;
    // SAFETY: (1) `base` is a fresh block of `size + align` bytes; (2) `align` was checked by `over_allocated`.
    Some(unsafe { place(base, align, size) })
}

/// Resizes an aligned block to `new_size` bytes, keeping the first `min(old, new)` bytes and the alignment.
///
/// `ptr = None` acts as [`aligned_malloc`]; `new_size = 0` does not free. `None` means that the request could not be
/// met, as for `aligned_malloc`; the old block is then untouched and still the caller's.
///
/// # Safety
///
/// 1. `ptr` is `None` or a live block that `aligned_malloc`, `aligned_calloc` or `aligned_realloc` gave for this
///    allocator and this `align`.
/// 2. After a successful call the old pointer is dead, even where it equals the new one.
#[inline]
pub unsafe fn aligned_realloc<A: Malloc + ?Sized>(
    allocator: &A,
    ptr: Option<NonNull<u8>>,
    align: usize,
    new_size: usize,
) -> Option<NonNull<u8>> {
    match ptr {
        None => aligned_malloc(allocator, align, new_size),
        Some(_) if is_plain(align) => {
            // SAFETY: a block of this alignment is a plain one, so the caller's 1 and 2 are those of `realloc`.
            unsafe { allocator.realloc(ptr, new_size) }
        }
        Some(block) => {
            // SAFETY: (1) caller's 1, for an alignment above `MIN_ALIGN`; (2) caller's 2.
            unsafe { resize_over_aligned(allocator, block, align, new_size) }
        }
    }
}

/// Frees an aligned block; `None` does nothing.
///
/// # Safety
///
/// 1. `ptr` is `None` or a live block that `aligned_malloc`, `aligned_calloc` or `aligned_realloc` gave for this
///    allocator and this `align`.
/// 2. The block is not used afterwards.
#[inline]
pub unsafe fn aligned_free<A: Malloc + ?Sized>(
    allocator: &A,
    ptr: Option<NonNull<u8>>,
    align: usize,
) {
    let base = match ptr {
        Some(block) if !is_plain(align) => {
            // SAFETY: (1) caller's 1, for an alignment above `MIN_ALIGN`.
            Some(unsafe { header(block) }.base)
        }
        plain => plain,
    };
    // SAFETY: (1) `base` is `None`, a plain live block, or the base of a live one; (2) is the caller's 2.
    unsafe { allocator.free(base) };
}

/// A block for `layout`; for 0 bytes a dangling pointer, without a call.
#[inline]
pub(crate) fn allocate<A: Malloc + ?Sized>(allocator: &A, layout: Layout) -> Option<NonNull<u8>> {
    if layout.size() == 0 {
        return dangling(layout);
    }
    aligned_malloc(allocator, layout.align(), layout.size())
}

/// A zeroed block for `layout`, from `calloc`; for 0 bytes a dangling pointer, without a call.
#[inline]
pub(crate) fn allocate_zeroed<A: Malloc + ?Sized>(
    allocator: &A,
    layout: Layout,
) -> Option<NonNull<u8>> {
    if layout.size() == 0 {
        return dangling(layout);
    }
    aligned_calloc(allocator, layout.align(), 1, layout.size())
}

/// Gives a block back.
///
/// # Safety
///
/// 1. `ptr` was given for `layout` by a function of this file, for this allocator, and is live.
/// 2. It is not used afterwards.
#[inline]
pub(crate) unsafe fn deallocate<A: Malloc + ?Sized>(
    allocator: &A,
    ptr: NonNull<u8>,
    layout: Layout,
) {
    if layout.size() != 0 {
        // SAFETY: (1) as its size is not 0, the block is from the aligned functions (caller's 1); (2) caller's 2.
        unsafe { aligned_free(allocator, Some(ptr), layout.align()) };
    }
}

/// Makes the block of `old` one of `new`, keeping the first `min(old, new)` bytes; on `None` it is untouched.
///
/// # Safety
///
/// 1. `ptr` was given for `old` by a function of this file, for this allocator, and is live.
/// 2. After a successful call it is not used.
#[inline]
pub(crate) unsafe fn resize<A: Malloc + ?Sized>(
    allocator: &A,
    ptr: NonNull<u8>,
    old: Layout,
    new: Layout,
) -> Option<NonNull<u8>> {
    if old.size() != 0 && new.size() != 0 {
        if is_plain(old.align()) && is_plain(new.align()) {
            // SAFETY: a block of at most `MIN_ALIGN` is a plain one, so the caller's 1 and 2 are those of `realloc`.
            return unsafe { allocator.realloc(Some(ptr), new.size()) };
        }
        if !is_plain(old.align()) && !is_plain(new.align()) {
            // SAFETY: (1) caller's 1, for an alignment above `MIN_ALIGN`; (2) caller's 2.
            return unsafe { resize_over_aligned(allocator, ptr, new.align(), new.size()) };
        }
    }
    let block = allocate(allocator, new)?;
    let kept = old.size().min(new.size());
    // SAFETY: both blocks hold at least `kept` bytes, and differ since both are live (or `kept` is 0).
    unsafe { ptr.copy_to_nonoverlapping(block, kept) };
    // SAFETY: (1) caller's 1; (2) caller's 2, as this call succeeds.
    unsafe { deallocate(allocator, ptr, old) };
    Some(block)
}

#[inline]
const fn is_plain(align: usize) -> bool {
    align <= MIN_ALIGN && align.is_power_of_two()
}

/// The bytes to ask for; `None` if they overflow or `align` is not a power of two.
#[inline]
const fn over_allocated(align: usize, size: usize) -> Option<usize> {
    if align.is_power_of_two() { size.checked_add(align) } else { None }
}

#[inline]
fn dangling(layout: Layout) -> Option<NonNull<u8>> {
    NonNull::new(core::ptr::without_provenance_mut(layout.align()))
}

/// Bytes from a base to the first multiple of `align` that leaves room for a header: `MIN_ALIGN` to `align`.
#[inline]
fn offset_in(base: NonNull<u8>, align: usize) -> usize {
    // `base` is a multiple of `MIN_ALIGN` and `align` a greater one: so is the difference, and it is not 0.
    align - (base.addr().get() & (align - 1))
}

/// Writes the header for the aligned address after `base` and returns that address.
///
/// # Safety
///
/// 1. `base` is a live block of `Malloc` with at least `align + size` bytes.
/// 2. `align` is a power of two above `MIN_ALIGN`.
#[inline]
unsafe fn place(base: NonNull<u8>, align: usize, size: usize) -> NonNull<u8> {
    // SAFETY: the offset is at most `align`, which is within the block (caller's 1).
    let block = unsafe { base.add(offset_in(base, align)) };
    // SAFETY: the offset is at least `MIN_ALIGN` (caller's 2), which holds a header: still within the block.
    let header = unsafe { block.cast::<Header>().sub(1) };
    // SAFETY: the header lies within the live block, and is aligned since `block` is to `align` and `MIN_ALIGN`
    // is a multiple of both the size and the alignment of a header, asserted above.
    unsafe { header.write(Header { base, size }) };
    block
}

/// The header of an over-aligned block.
///
/// # Safety
///
/// 1. `block` is a live block that `place` returned.
#[inline]
unsafe fn header(block: NonNull<u8>) -> Header {
    // SAFETY: `place` put a header right below the block (caller's 1).
    let header = unsafe { block.cast::<Header>().sub(1) };
    // SAFETY: as above, and nobody else may write below a block.
    unsafe { header.read() }
}

/// Resizes an over-aligned block in place where the allocator can, to an alignment that may be another one.
///
/// # Safety
///
/// 1. `block` is a live block that `place` returned, and `align` is a power of two above `MIN_ALIGN`.
/// 2. After a successful call it is not used.
unsafe fn resize_over_aligned<A: Malloc + ?Sized>(
    allocator: &A,
    block: NonNull<u8>,
    align: usize,
    new_size: usize,
) -> Option<NonNull<u8>> {
    // SAFETY: (1) is the caller's 1.
    let old = unsafe { header(block) };
    let old_offset = block.addr().get() - old.base.addr().get();
    let kept = old.size.min(new_size);
    // `realloc` keeps content where it was, so a stricter old alignment may need more room than the new one.
    let total = over_allocated(align, new_size)?.max(old_offset + kept);
    // SAFETY: (1) `old.base` is the live block below `block`; (2) only the answer is used after success.
    let base = unsafe { allocator.realloc(Some(old.base), total) }?;
    let new_offset = offset_in(base, align);
    if new_offset != old_offset {
        // SAFETY: `old_offset + kept <= total`.
        let from = unsafe { base.add(old_offset) };
        // SAFETY: `new_offset <= align`, and `align + kept <= align + new_size <= total`.
        let to = unsafe { base.add(new_offset) };
        // SAFETY: both ranges lie within the block, as shown; they may overlap, which `copy_to` allows.
        unsafe { from.copy_to(to, kept) };
    }
    // SAFETY: (1) `base` is live with at least `align + new_size` bytes; (2) caller's 1. The header is written after
    // the content has left the bytes below `new_offset`.
    Some(unsafe { place(base, align, new_size) })
}
