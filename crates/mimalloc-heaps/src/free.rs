//! Owns how a thread frees a block of the default heaps: as mimalloc does, but that a thread's first free of a block of
//! somebody else's page gives the thread a heap.
//!
//! Without a heap in the freeing thread, mimalloc does not offer a page that was full to others before its last block is
//! free. The first steps of `mi_free` stand here, so that a block of an own page costs nothing more.

use core::cell::Cell;
use core::ffi::c_void;
use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use crate::ffi::{self, Page};
use crate::idle;
use crate::page::{page_of, thread_number};

thread_local! {
    /// Whether the thread was given a heap, which is not done again when it has ended. No destructor.
    static HAS_HEAP: Cell<bool> = const { Cell::new(false) };
}

/// Frees `block`.
///
/// # Safety
///
/// 1. `block` is a live block of mimalloc.
/// 2. The block is not used afterwards.
#[inline]
pub(crate) unsafe fn free(block: NonNull<u8>) {
    // SAFETY: (1).
    let page = unsafe { page_of(block) };
    let block: *mut c_void = block.as_ptr().cast();
    if page.owner.load(Ordering::Relaxed) != thread_number() {
        // SAFETY: (1) and (2).
        return unsafe { free_generic(block) };
    }
    // SAFETY: a block is aligned and has room for a pointer; nobody else uses it (2).
    unsafe { block.cast::<*mut c_void>().write(page.local_free.get()) };
    page.local_free.set(block);
    page.used.set(page.used.get() - 1);
    if page.used.get() == 0 && page.retire_expire.get() == 0 {
        // SAFETY: (1) as just seen.
        unsafe { retire(page) };
    }
}

/// Has mimalloc keep a page that is empty, or leave it to its arena.
///
/// # Safety
///
/// 1. The calling thread owns `page`, which has no block any more and was not retired.
#[inline(never)]
unsafe fn retire(page: &Page) {
    let bytes = usize::from(page.capacity.get()) * page.block_size.get();
    // SAFETY: (1).
    unsafe { ffi::_mi_page_retire(page) };
    idle::note_freed(bytes);
}

/// Frees a block of a page that is somebody else's or needs a closer look.
///
/// # Safety
///
/// 1. `block` is a live block of mimalloc.
/// 2. The block is not used afterwards.
#[cold]
#[inline(never)]
unsafe fn free_generic(block: *mut c_void) {
    if !HAS_HEAP.replace(true) {
        // SAFETY: no preconditions; does nothing for a thread that has a heap.
        unsafe { ffi::mi_thread_init() };
    }
    // SAFETY: a live block (1).
    let bytes = unsafe { ffi::mi_usable_size(block) };
    // SAFETY: a live block (1) that is not used again (2).
    unsafe { ffi::mi_free(block) };
    idle::note_freed(bytes);
}

#[cfg(all(test, target_os = "linux", target_env = "gnu", target_arch = "x86_64"))]
mod tests {
    use malloc_api::Malloc as _;

    use super::*;
    use crate::MiMalloc;

    #[test]
    fn the_fields_of_a_page_are_where_mimalloc_has_them() {
        let [first, second] = [(); 2].map(|()| MiMalloc.malloc(5000).unwrap());
        // SAFETY: (1) live to the end of the test.
        let page = unsafe { page_of(first) };
        assert_eq!(page.owner.load(Ordering::Relaxed), thread_number());
        let used = page.used.get();
        // SAFETY: (1) live and (2) not used afterwards.
        unsafe { free(second) };
        assert_eq!((page.used.get(), page.local_free.get()), (used - 1, second.as_ptr().cast()));
        assert_eq!(page.retire_expire.get(), 0);
        // SAFETY: (1) live and (2) not used afterwards.
        unsafe { free(first) };
        assert_ne!(page.retire_expire.get(), 0, "the last block of the last page of its size");
    }
}
