//! Visits every point at which a program can run out of memory.

use std::ptr::NonNull;

use malloc_api::testing::{Counting, FailAfter};
use malloc_api::{LibcMalloc, Malloc};

/// A list of three blocks, or nothing at all.
fn build(allocator: &impl Malloc) -> Option<[NonNull<u8>; 3]> {
    let mut built = [None; 3];
    for (size, place) in [16, 100, 4000].into_iter().zip(0..) {
        built[place] = allocator.malloc(size);
        if built[place].is_none() {
            for block in built {
                // SAFETY: (1) each is `None` or live; (2) none is used afterwards.
                unsafe { allocator.free(block) };
            }
            return None;
        }
    }
    Some(built.map(|block| block.expect("checked one by one")))
}

fn main() {
    let failing = FailAfter::new(Counting::new(LibcMalloc), 0);
    let mut failure_points = 0;
    let blocks = loop {
        failing.set(failure_points);
        match build(&failing) {
            Some(blocks) => break blocks,
            None => assert_eq!(failing.inner().counts().live_blocks, 0, "a failure must not leak"),
        }
        failure_points += 1;
    };
    assert_eq!(failure_points, 3);
    for block in blocks {
        // SAFETY: (1) each block is live; (2) none is used afterwards.
        unsafe { failing.free(Some(block)) };
    }
    assert_eq!(failing.inner().counts().live_blocks, 0);
}
