//! Every error of the crate, as a person reads it: what was wrong, what was expected, what to do.

use malloc_api::testing::assert_reviewed;
use mimalloc_heaps::HeapError as E;

#[test]
fn every_error_is_as_it_was_reviewed() {
    let version = E::Version { found: 30_200, expected: 30_302 };
    assert_reviewed(
        include_str!("../refusals.txt"),
        &[
            ("mimalloc_heaps::HeapError::Version", &version),
            ("mimalloc_heaps::HeapError::OutOfMemory", &E::OutOfMemory),
            ("mimalloc_heaps::HeapError::AlreadyAttached", &E::AlreadyAttached),
            ("mimalloc_heaps::HeapError::ForkHandlers", &E::ForkHandlers { errno: 12 }),
        ],
    );
}
