//! Owns how a thread takes a small block from its theap: as mimalloc does, but without a call where a block is at hand.

use core::ptr::NonNull;

use malloc_api::MIN_ALIGN;

use crate::ffi;

/// A block for `size` bytes from the page that `theap` has for these, of 16 bytes at least; `None` if it is left to mimalloc, as no block is
/// at hand or the size is above [`MI_SMALL_SIZE_MAX`](ffi::MI_SMALL_SIZE_MAX).
///
/// # Safety
///
/// 1. `theap` is the calling thread's, or the one that serves nothing.
#[inline]
pub(crate) unsafe fn malloc(theap: *mut ffi::mi_theap_t, size: usize) -> Option<NonNull<u8>> {
    // SAFETY: (1).
    let page = unsafe { page(theap, size) }?;
    // SAFETY: (1) pages of the thread's theap are its own.
    unsafe { page.take() }
}

/// As [`malloc`], with zero bytes.
///
/// # Safety
///
/// As [`malloc`].
#[inline]
pub(crate) unsafe fn calloc(theap: *mut ffi::mi_theap_t, size: usize) -> Option<NonNull<u8>> {
    // SAFETY: (1).
    let page = unsafe { page(theap, size) }?;
    // SAFETY: (1) pages of the thread's theap are its own.
    let block = unsafe { page.take() }?;
    let dirty = if page.free_is_zero.get() { size_of::<usize>() } else { size };
    // SAFETY: a block for `size` bytes, of 16 at least, and nobody else has it.
    unsafe { block.write_bytes(0, dirty) };
    Some(block)
}

/// The page that `theap` has for blocks of `size` bytes; `None` above the small sizes.
///
/// # Safety
///
/// 1. `theap` is live.
#[inline]
unsafe fn page(theap: *mut ffi::mi_theap_t, size: usize) -> Option<&'static ffi::Page> {
    if size > ffi::MI_SMALL_SIZE_MAX {
        return None;
    }
    // SAFETY: live (1), and as large as its beginning.
    let theap = unsafe { &*theap.cast::<ffi::Theap>() };
    // SAFETY: there is a pair for each small size.
    let (page, _) = unsafe { theap.pages.get_unchecked(rounded(size) / MIN_ALIGN) };
    Some(page.get())
}

/// The least multiple of [`MIN_ALIGN`] that is no less than `size` nor 1.
#[inline]
pub(crate) fn rounded(size: usize) -> usize {
    // Three instructions, where the greater of two takes four.
    (size + (MIN_ALIGN - 1) + usize::from(size == 0)) & !(MIN_ALIGN - 1)
}

const _: () =
    assert!(MIN_ALIGN == 2 * size_of::<usize>() && ffi::MI_SMALL_SIZE_MAX % MIN_ALIGN == 0);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::page_of;

    #[test]
    fn the_pages_of_a_theap_are_where_mimalloc_has_them() {
        // SAFETY: no preconditions.
        unsafe { ffi::mi_thread_init() };
        // SAFETY: no preconditions.
        let heap = unsafe { ffi::mi_heap_new() };
        // SAFETY: a live heap.
        let theap = unsafe { ffi::mi_heap_theap(heap) };
        for size in (MIN_ALIGN..=ffi::MI_SMALL_SIZE_MAX).step_by(16) {
            // SAFETY: (1) the thread's own.
            assert_eq!(unsafe { malloc(theap, size) }, None, "{size}: the theap has no page yet");
            // SAFETY: the thread's own.
            let first = NonNull::new(unsafe { ffi::mi_theap_malloc(theap, size) }).unwrap().cast();
            // SAFETY: (1) live to the end of the test.
            let page = unsafe { page_of(first) };
            assert_eq!((page.used.get(), page.start.get()), (1, first.as_ptr().cast()));
            assert!(page.block_size.get() >= size && page.block_size.get() <= size * 5 / 4 + 8);
            assert!(page.capacity.get() > 1);
            // SAFETY: (1) the thread's own.
            let second = unsafe { malloc(theap, size) }.unwrap();
            assert_eq!(second.as_ptr().addr() - first.as_ptr().addr(), page.block_size.get());
            // SAFETY: (1) the thread's own.
            let third = unsafe { calloc(theap, size) }.unwrap();
            // SAFETY: a live block of these bytes.
            let bytes = unsafe { core::slice::from_raw_parts(third.as_ptr(), size) };
            assert!(bytes.iter().all(|byte| *byte == 0));
            assert_eq!(page.used.get(), 3);
            // SAFETY: a live heap, and no block of this size is used again.
            for block in [first, second, third] {
                // SAFETY: live, and not used afterwards.
                unsafe { ffi::mi_free(block.as_ptr().cast()) };
            }
            // SAFETY: the thread's own.
            unsafe { ffi::mi_theap_collect(theap, true) };
        }
        // SAFETY: (1) the theap that serves nothing.
        assert_eq!(unsafe { malloc(ffi::empty_theap(), 16) }, None);
        // SAFETY: a live heap whose blocks nobody uses.
        unsafe { ffi::mi_heap_destroy(heap) };
    }
}
