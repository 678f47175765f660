//! `FailAfter` fails exactly the allocations that it was set to fail.

use malloc_api::testing::{Counting, FailAfter};
use malloc_api::{LibcMalloc, Malloc};
use rstest::rstest;

/// Makes six allocations of all three kinds, frees them, and says which ones succeeded.
fn program(allocator: &impl Malloc) -> [bool; 6] {
    let malloc = allocator.malloc(1);
    let calloc = allocator.calloc(1, 1);
    // SAFETY: (1) `None` is allowed; (2) there is no old block.
    let fresh = unsafe { allocator.realloc(None, 1) };
    // SAFETY: (1) `malloc` is live or `None`; (2) it is replaced below if this succeeds.
    let resized = unsafe { allocator.realloc(malloc, 2) };
    let more = [allocator.malloc(1), allocator.malloc(1)];
    for block in [resized.or(malloc), calloc, fresh, more[0], more[1]] {
        // SAFETY: (1) each is `None` or live: the resized block replaced the old one; (2) none is used again.
        unsafe { allocator.free(block) };
    }
    [malloc, calloc, fresh, resized, more[0], more[1]].map(|block| block.is_some())
}

#[rstest]
#[case(0, usize::MAX, [false; 6])]
#[case(1, usize::MAX, [true, false, false, false, false, false])]
#[case(3, usize::MAX, [true, true, true, false, false, false])]
#[case(6, usize::MAX, [true; 6])]
#[case(usize::MAX, usize::MAX, [true; 6])]
#[case(1, 2, [true, false, true, true, true, true])]
#[case(0, 3, [false, false, false, true, true, true])]
#[case(3, 3, [true; 6])]
#[case(4, 2, [true; 6])]
fn fails_those_between_start_and_stop(
    #[case] start: usize,
    #[case] stop: usize,
    #[case] expected: [bool; 6],
) {
    let failing = FailAfter::new(Counting::new(LibcMalloc), 0);
    failing.set_window(start, stop);
    assert_eq!(program(&failing), expected);
    assert_eq!(failing.calls(), 6);
    assert_eq!(failing.failures(), expected.iter().filter(|&&succeeded| !succeeded).count());
    let counts = failing.inner().counts();
    assert_eq!(counts.failed, 0, "a failed allocation must not reach the inner allocator");
    assert_eq!(counts.live_blocks, 0);
}

#[test]
fn set_counts_from_zero_again() {
    let failing = FailAfter::new(LibcMalloc, 2);
    assert_eq!(program(&failing), [true, true, false, false, false, false]);
    failing.set(5);
    assert_eq!((failing.calls(), failing.failures()), (0, 0));
    assert_eq!(program(&failing), [true, true, true, true, true, false]);
    failing.disarm();
    assert_eq!(program(&failing), [true; 6]);
}

#[test]
fn counting_counts_what_it_sees() {
    let counting = Counting::new(FailAfter::new(LibcMalloc, 4));
    program(&counting);
    let counts = counting.counts();
    assert_eq!((counts.malloc, counts.calloc, counts.realloc, counts.free), (3, 1, 2, 5));
    assert_eq!((counts.failed, counts.live_blocks, counts.peak_blocks), (2, 0, 3));
    assert_eq!(counts.calls(), 11);
    counting.reset_calls();
    assert_eq!(counting.counts().calls(), 0);
    assert_eq!(counting.counts().peak_blocks, 3);
}
