//! Owns the bound: free lists that a thread shares with nobody, so that a freed block stays with the thread that frees it.

use std::cell::RefCell;
use std::ptr::NonNull;

use malloc_api::{LibcMalloc, MIN_ALIGN, Malloc};

/// Sizes up to this have lists, one for every [`MIN_ALIGN`] bytes.
const MAX_BYTES: usize = 1 << 15;

thread_local! {
    static LISTS: RefCell<Vec<Vec<NonNull<u8>>>> = RefCell::new(vec![Vec::new(); MAX_BYTES / MIN_ALIGN]);
}

/// Lists by size. A block's first word must be its size, which the load writes.
#[derive(Clone, Copy)]
pub(crate) struct Unshared;

// SAFETY: 1: a block is on one list, of one thread, or the caller's, and comes from `LibcMalloc` with its class's size; 2 and
// 3: the load asks for no other; 4: nothing here unwinds but for want of memory, which ends the benchmark; 5: each thread has
// lists of its own, and blocks belong to none.
unsafe impl Malloc for Unshared {
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        let class = size / MIN_ALIGN;
        let block = LISTS.with_borrow_mut(|lists| lists[class].pop());
        block.or_else(|| LibcMalloc.malloc((class + 1) * MIN_ALIGN))
    }

    fn calloc(&self, _nelem: usize, _elsize: usize) -> Option<NonNull<u8>> {
        None
    }

    unsafe fn realloc(&self, _ptr: Option<NonNull<u8>>, _new_size: usize) -> Option<NonNull<u8>> {
        None
    }

    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        let Some(block) = ptr else { return };
        // SAFETY: a live block, whose first word the load has written.
        let size = unsafe { block.cast::<u64>().read() };
        LISTS.with_borrow_mut(|lists| lists[size as usize / MIN_ALIGN].push(block));
    }
}
