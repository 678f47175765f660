//! Owns how a thread frees a block of the default heaps: as mimalloc does, but that a thread's first free of a block of
//! somebody else's page gives the thread a heap.
//!
//! Without a heap in the freeing thread, mimalloc does not offer a page that was full to others before its last block is
//! free. The first steps of `mi_free` stand here, so that a block of an own page costs nothing more.

use core::cell::Cell;
use core::ffi::c_void;
use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use crate::ffi;

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
    let block: *mut c_void = block.as_ptr().cast();
    // SAFETY: (1).
    let page = unsafe { page_of(block) };
    if page.owner.load(Ordering::Relaxed) != thread_number() {
        // SAFETY: (1) and (2).
        return unsafe { free_generic(block) };
    }
    // SAFETY: a block is aligned and has room for a pointer; nobody else uses it (2).
    unsafe { block.cast::<*mut c_void>().write(page.local_free.get()) };
    page.local_free.set(block);
    page.used.set(page.used.get() - 1);
    if page.used.get() == 0 && page.retire_expire.get() == 0 {
        // SAFETY: a page of the calling thread, which has no block any more.
        unsafe { ffi::_mi_page_retire(page) };
    }
}

/// The page of `block`.
///
/// # Safety
///
/// 1. `block` is a live block of mimalloc, and is live while the page is used.
#[inline]
unsafe fn page_of<'a>(block: *mut c_void) -> &'a ffi::Page {
    // SAFETY: set, as there is a block (1).
    let map = unsafe { ffi::_mi_page_map };
    let part = map.wrapping_add(block.addr() >> 29);
    // SAFETY: the map has a part for the address of each block (1).
    let part = unsafe { part.read() };
    let page = part.wrapping_add((block.addr() >> 16) & 0x1fff);
    // SAFETY: the part has an entry for each 64 KiB of addresses.
    let page = unsafe { page.read() };
    // SAFETY: the page of a live block (1) is live; who does not own it touches the first field alone, which is atomic.
    unsafe { &*page }
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
    // SAFETY: a live block (1) that is not used again (2).
    unsafe { ffi::mi_free(block) };
}

/// The number under which mimalloc knows the calling thread.
#[cfg(all(target_os = "linux", target_env = "gnu", target_arch = "x86_64"))]
#[inline]
fn thread_number() -> usize {
    let number;
    // SAFETY: reads the first word of the thread's own block, which is the block's address.
    unsafe {
        core::arch::asm!("mov {}, fs:0", out(reg) number, options(nostack, preserves_flags, readonly, pure));
    };
    number
}

/// No thread's number, so that `mi_free` has every block.
#[cfg(not(all(target_os = "linux", target_env = "gnu", target_arch = "x86_64")))]
#[inline]
fn thread_number() -> usize {
    usize::MAX
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
        let page = unsafe { page_of(first.as_ptr().cast()) };
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
