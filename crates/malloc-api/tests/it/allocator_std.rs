//! The tests of `allocator.rs` with the standard library's own trait.

use std as api;

#[expect(clippy::duplicate_mod, reason = "the same tests for each version of the trait")]
#[path = "allocator.rs"]
mod tests;

#[test]
fn collections_of_the_standard_library_take_it() {
    use malloc_api::{AllocatorAdapter, LibcMalloc, testing::Counting};

    let counting = Counting::new(LibcMalloc);
    let handle = AllocatorAdapter::new(&counting);
    let mut numbers = Vec::new_in(handle);
    numbers.extend(0..1000);
    let boxed = Box::new_in(numbers.iter().sum::<i32>(), handle);
    assert_eq!((*boxed, counting.counts().live_blocks), (499_500, 2));
    drop((numbers, boxed));
    assert_eq!(counting.counts().live_blocks, 0);
}
