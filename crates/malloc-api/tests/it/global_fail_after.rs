//! `GlobalFailAfter`: limits inside of limits, and after a panic.

use std::alloc::{GlobalAlloc, Layout};
use std::panic::catch_unwind;

use malloc_api::testing::GlobalFailAfter;

/// Whether an allocation succeeds now.
fn succeeds() -> bool {
    let layout = Layout::new::<u64>();
    // SAFETY: the layout's size is not zero.
    let block = unsafe { GlobalFailAfter.alloc(layout) };
    if !block.is_null() {
        // SAFETY: from `alloc` with this layout, and not used afterwards.
        unsafe { GlobalFailAfter.dealloc(block, layout) };
    }
    !block.is_null()
}

#[test]
fn a_limit_ends_with_its_body() {
    assert!(!GlobalFailAfter::with(0, succeeds));
    assert_eq!(GlobalFailAfter::with(1, || (succeeds(), succeeds())), (true, false));
    assert!(succeeds());
}

#[test]
fn the_outer_limit_holds_again_after_an_inner_one() {
    let after = GlobalFailAfter::with(1, || {
        assert!(!GlobalFailAfter::with(0, succeeds));
        (succeeds(), succeeds())
    });
    assert_eq!(after, (true, false));
}

#[test]
fn a_panic_ends_the_limit() {
    let panicked = catch_unwind(|| GlobalFailAfter::with(0, || panic!("on purpose")));
    assert!(panicked.is_err());
    assert!(succeeds());
}
