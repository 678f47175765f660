//! Every error of the crate, as a person reads it: what was wrong, what was expected, what to do.

use malloc_api::testing::{Nonconformance as N, assert_reviewed};
use malloc_api::{RecordError, UnknownDomain};

#[test]
fn every_error_is_as_it_was_reviewed() {
    let (method, size, address, offset) = ("realloc", 100, 0x1008, 7);
    assert_reviewed(
        include_str!("../refusals.txt"),
        &[
            ("malloc_api::RecordError::NullFunction", &RecordError::NullFunction("malloc")),
            ("malloc_api::RecordError::NotThreadSafe", &RecordError::NotThreadSafe),
            ("malloc_api::UnknownDomain", &UnknownDomain(3)),
            ("malloc_api::Nonconformance::Refused", &N::Refused { method, size }),
            ("malloc_api::Nonconformance::Misaligned", &N::Misaligned { method, size, address }),
            ("malloc_api::Nonconformance::Overlap", &N::Overlap { method, size, address }),
            (
                "malloc_api::Nonconformance::Oversize",
                &N::Oversize { method, nelem: 2, elsize: 1 << 62 },
            ),
            ("malloc_api::Nonconformance::NotZeroed", &N::NotZeroed { size, offset, found: 1 }),
            (
                "malloc_api::Nonconformance::ContentLost",
                &N::ContentLost { old_size: 64, new_size: 100, offset },
            ),
            (
                "malloc_api::Nonconformance::FailedReallocTouched",
                &N::FailedReallocTouched { old_size: 64, offset },
            ),
            ("malloc_api::Nonconformance::Changed", &N::Changed { size, offset }),
        ],
    );
}
