//! Programs that each kind of recording is shown, and what it must have recorded of them.

use malloc_api::testing::FailAfter;
use malloc_api::{LibcMalloc, Malloc};
use malloc_trace::Op;

/// A program of every kind of operation. Its last takes the lowest slot that is free, as a recording does.
pub(crate) const EVERY_KIND: [Op; 6] = [
    Op::malloc(0, 1, 24),
    Op::calloc(1, 1, 0),
    Op::realloc(0, 1, 500),
    Op::realloc(2, 1, 7),
    Op::free(0, 1),
    Op::malloc(0, 1, 100_000),
];

/// What is recorded of [`fail_and_go_on`] in domain 2.
pub(crate) const WHAT_SUCCEEDED: [Op; 3] =
    [Op::malloc(0, 2, 10), Op::realloc(0, 2, 30), Op::free(0, 2)];

/// Makes one block, fails in every way, and goes on with the block. `recorder` is over `failing`, which fails from the
/// second allocation on.
pub(crate) fn fail_and_go_on(recorder: &impl Malloc, failing: &FailAfter<LibcMalloc>) {
    let block = recorder.malloc(10);
    assert!(recorder.malloc(10).is_none() && recorder.calloc(1, 10).is_none());
    // SAFETY: (1) `None` is allowed and `block` is live; (2) a failure leaves the block.
    assert!(unsafe { recorder.realloc(None, 10) }.is_none());
    // SAFETY: as above.
    assert!(unsafe { recorder.realloc(block, 20) }.is_none());
    // SAFETY: (1) `None` is allowed; (2) there is no block.
    unsafe { recorder.free(None) };
    failing.disarm();
    // SAFETY: (1) the block is live; (2) only the answer is used afterwards.
    let block = unsafe { recorder.realloc(block, 30) };
    // SAFETY: (1) the block is live; (2) it is not used afterwards.
    unsafe { recorder.free(block) };
}
