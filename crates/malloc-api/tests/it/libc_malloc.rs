//! `LibcMalloc` hands out the C library's own blocks.

use malloc_api::{LibcMalloc, Malloc};

#[test]
fn c_frees_our_blocks_and_we_free_those_of_c() {
    let ours = LibcMalloc.malloc(0).expect("out of memory");
    // SAFETY: the block is the C library's and not used afterwards.
    unsafe { libc::free(ours.as_ptr().cast()) };

    // SAFETY: `malloc` has no preconditions.
    let theirs = unsafe { libc::malloc(10) };
    let theirs = std::ptr::NonNull::new(theirs.cast()).expect("out of memory");
    // SAFETY: (1) the block is live; (2) it is not used afterwards.
    let resized = unsafe { LibcMalloc.realloc(Some(theirs), 0) };
    assert!(resized.is_some(), "realloc to 0 must not free");
    // SAFETY: (1) the block is live; (2) it is not used afterwards.
    unsafe { LibcMalloc.free(resized) };
}
