//! Every error of the crate, as a person reads it: what was wrong, what was expected, what to do.

use heap_profile::ProfileError as E;
use malloc_api::testing::assert_reviewed;

#[test]
fn every_error_is_as_it_was_reviewed() {
    assert_reviewed(
        include_str!("../refusals.txt"),
        &[
            ("heap_profile::ProfileError::Frames", &E::Frames(0)),
            ("heap_profile::ProfileError::TooMany", &E::TooMany),
            ("heap_profile::ProfileError::NoMemory", &E::NoMemory(65_536)),
        ],
    );
}
