//! `Counting` on blocks that it has not seen coming.

use malloc_api::testing::Counting;
use malloc_api::{LibcMalloc, Malloc};

#[test]
fn a_block_of_the_allocator_below_may_be_freed() {
    let counting = Counting::new(LibcMalloc);
    let block = counting.inner().malloc(1);
    // SAFETY: (1) a live block of the one allocator that serves both; (2) not used afterwards.
    unsafe { counting.free(block) };
    let block = counting.malloc(1);
    // SAFETY: as above.
    unsafe { counting.free(block) };
    assert_eq!(counting.counts().calls(), 3);
}
