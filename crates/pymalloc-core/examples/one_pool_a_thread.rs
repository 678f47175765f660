//! One allocator a thread: the worker frees the owner's blocks without a lock.

use std::ptr::NonNull;

use malloc_api::{LibcMalloc, Malloc};
use pymalloc_core::OwnedPymalloc;

/// A block that changes threads.
struct Sent(NonNull<u8>);

// SAFETY: the sender does not use the block again.
unsafe impl Send for Sent {}

fn main() {
    let owned = OwnedPymalloc::new(LibcMalloc);
    let remote = owned.remote();
    let blocks: Vec<Sent> = (0..1_000).map(|_| Sent(owned.malloc(64).unwrap())).collect();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for Sent(block) in blocks {
                // SAFETY: 1: live blocks of `owned`; 2: forgotten here.
                unsafe { remote.free(Some(block)) };
            }
        });
    });
    assert_eq!(owned.collect(), 1_000);
    assert_eq!(owned.allocated_blocks(), 0);
}
