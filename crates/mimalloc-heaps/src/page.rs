//! Owns what is known of mimalloc's pages: which one has a block, and what the block takes of it.

use core::ffi::c_void;
use core::ptr::{self, NonNull};
use core::sync::atomic::Ordering;

use crate::ffi::{self, Page};

/// mimalloc makes new blocks of a page as far as they fit into these, and one at least.
pub(crate) const MADE_AT_ONCE: usize = 4096;

/// Blocks up to these bytes share pages with others of their size.
const SHARED_MAX: usize = 512 << 10;

/// Bytes of a block that mimalloc makes for `size`; its own `mi_good_size` knows only of blocks that share pages.
pub(crate) fn block_bytes(size: usize) -> usize {
    if size <= SHARED_MAX {
        // SAFETY: no preconditions.
        unsafe { ffi::mi_good_size(size) }
    } else {
        // SAFETY: no preconditions.
        unsafe { ffi::_mi_os_good_alloc_size(size) }
    }
}

/// The page of `block`.
///
/// # Safety
///
/// 1. `block` is a live block of mimalloc, and is live while the page is used.
#[inline]
pub(crate) unsafe fn page_of<'a>(block: NonNull<u8>) -> &'a Page {
    let address = block.as_ptr().addr();
    // SAFETY: set, as there is a block (1).
    let map = unsafe { ffi::_mi_page_map };
    let part = map.wrapping_add(address >> 29);
    // SAFETY: the map has a part for the address of each block (1).
    let part = unsafe { part.read() };
    let page = part.wrapping_add((address >> 16) & 0x1fff);
    // SAFETY: the part has an entry for each 64 KiB of addresses.
    let page = unsafe { page.read() };
    // SAFETY: the page of a live block (1) is live; who does not own it touches the first field alone, which is atomic.
    unsafe { &*page }
}

/// The number under which mimalloc knows the calling thread.
#[cfg(all(target_os = "linux", target_env = "gnu", target_arch = "x86_64"))]
#[inline]
pub(crate) fn thread_number() -> usize {
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
pub(crate) fn thread_number() -> usize {
    usize::MAX
}

/// Bytes that `block` has room for.
///
/// # Safety
///
/// 1. `block` is a live block of mimalloc.
#[inline]
pub(crate) unsafe fn room_of(block: NonNull<u8>) -> usize {
    // SAFETY: (1).
    let page = unsafe { page_of(block) };
    if page.owner.load(Ordering::Relaxed) == thread_number() {
        return page.block_size.get();
    }
    // SAFETY: a live block (1).
    unsafe { ffi::mi_usable_size(block.as_ptr().cast()) }
}

/// Whether a block with `room` bytes serves for `size`: mimalloc moves one that is too small or more than half empty.
#[inline]
pub(crate) fn stays(room: usize, size: usize) -> bool {
    (room / 2..=room).contains(&size)
}

impl Page {
    /// Takes the next block; `None` if none is at hand, nor was freed by the owner.
    ///
    /// # Safety
    ///
    /// 1. The calling thread owns the page, or it is the one without blocks.
    #[inline]
    pub(crate) unsafe fn take(&self) -> Option<NonNull<u8>> {
        let block = NonNull::new(self.free.get()).or_else(|| self.take_freed())?;
        // SAFETY: a free block of the thread's own page (1) begins with a pointer to the next one.
        self.free.set(unsafe { block.cast::<*mut c_void>().read() });
        self.used.set(self.used.get() + 1);
        Some(block.cast())
    }

    /// The block that the owner freed last, after which come those before.
    #[inline]
    fn take_freed(&self) -> Option<NonNull<c_void>> {
        let block = NonNull::new(self.local_free.get())?;
        self.local_free.set(ptr::null_mut());
        self.free_is_zero.set(false);
        self.retire_expire.set(0);
        Some(block)
    }

    /// Bytes of blocks that were made with `block`, which was handed out just now and after a look for free ones; 0 if that did for
    /// it, and at times some that were made earlier.
    #[inline]
    pub(crate) fn made_with(&self, block: NonNull<u8>) -> usize {
        let size = self.block_size.get();
        let before = block.as_ptr().addr() - self.start.get().addr();
        // New blocks are the last ones of those that were made, and the first of them is handed out.
        let made = usize::from(self.capacity.get()) * size - before;
        if made <= size.max(MADE_AT_ONCE) { made } else { 0 }
    }
}
