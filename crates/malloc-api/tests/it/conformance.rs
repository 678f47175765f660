//! Every `Malloc` of this crate, alone and stacked, keeps the contract and frees what it takes.

use malloc_api::testing::{Counting, FailAfter, conformance};
use malloc_api::{LibcMalloc, Malloc};
use rstest::rstest;

#[rstest]
#[case(&LibcMalloc)]
#[case(&&LibcMalloc)]
#[case(&Counting::new(LibcMalloc))]
#[case(&FailAfter::new(LibcMalloc, usize::MAX))]
#[case(&Counting::new(FailAfter::new(&LibcMalloc, usize::MAX)))]
fn conforms(#[case] allocator: &dyn Malloc) {
    conformance(allocator);
}

#[test]
fn conformance_frees_every_block() {
    let counting = Counting::new(LibcMalloc);
    conformance(&counting);
    let counts = counting.counts();
    assert_eq!(counts.live_blocks, 0);
    assert!(counts.malloc > 1000 && counts.calloc > 100 && counts.realloc > 500, "{counts:?}");
    // 2 oversize mallocs, 7 callocs, 2 reallocs of `None`, 3 reallocs of a block of each of 19 sizes.
    assert_eq!(counts.failed, 2 + 7 + 2 + 3 * 19);
}
