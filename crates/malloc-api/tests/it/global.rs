//! `GlobalAdapter` as the duties of `GlobalAlloc` have it.

use std::alloc::{GlobalAlloc, Layout};

use malloc_api::testing::{Counting, FailAfter};
use malloc_api::{GlobalAdapter, LibcMalloc};
use rstest::rstest;

/// The tests themselves run on it.
#[global_allocator]
static GLOBAL: GlobalAdapter<Counting<LibcMalloc>> = GlobalAdapter::new(Counting::new(LibcMalloc));

#[test]
fn serves_this_program() {
    let before = GLOBAL.inner().counts();
    let boxed = std::hint::black_box(Box::new([1_u64; 100]));
    let zeroed = std::hint::black_box(vec![0_u8; 5000]);
    let after = GLOBAL.inner().counts();
    assert!(after.malloc > before.malloc && after.calloc > before.calloc);
    assert_eq!(boxed.iter().sum::<u64>() + u64::from(zeroed[4999]), 100);
}

#[rstest]
fn serves_every_layout(
    #[values(1, 8, 100, 5000)] size: usize,
    #[values(1, 16, 32, 4096)] align: usize,
) {
    let adapter = GlobalAdapter::new(Counting::new(LibcMalloc));
    let layout = Layout::from_size_align(size, align).expect("a layout");
    // SAFETY: the size is not zero.
    let block = unsafe { adapter.alloc(layout) };
    assert!(!block.is_null() && block.addr() % align == 0);
    // SAFETY: the block is `size` bytes long.
    unsafe { block.write_bytes(9, size) };
    // SAFETY: the block is live with this layout; the new size is not zero and small.
    let block = unsafe { adapter.realloc(block, layout, 2 * size) };
    assert!(!block.is_null() && block.addr() % align == 0);
    // SAFETY: the first `size` bytes were written and kept.
    let kept = unsafe { std::slice::from_raw_parts(block, size) };
    assert!(kept.iter().all(|&byte| byte == 9));
    let doubled = Layout::from_size_align(2 * size, align).expect("a layout");
    // SAFETY: the block is live with this layout and not used afterwards.
    unsafe { adapter.dealloc(block, doubled) };

    // SAFETY: the size is not zero.
    let zeroed = unsafe { adapter.alloc_zeroed(layout) };
    assert!(!zeroed.is_null() && zeroed.addr() % align == 0);
    // SAFETY: the block is `size` zeroed bytes long.
    let bytes = unsafe { std::slice::from_raw_parts(zeroed, size) };
    assert!(bytes.iter().all(|&byte| byte == 0));
    // SAFETY: the block is live with this layout and not used afterwards.
    unsafe { adapter.dealloc(zeroed, layout) };

    let counts = adapter.inner().counts();
    assert_eq!((counts.malloc, counts.calloc, counts.realloc, counts.free), (1, 1, 1, 2));
    assert_eq!(counts.live_blocks, 0);
}

#[test]
fn zero_sizes_make_no_call() {
    let adapter = GlobalAdapter::new(FailAfter::new(LibcMalloc, 0));
    let layout = Layout::from_size_align(0, 64).expect("a layout");
    // SAFETY: the adapter promises more than the trait: a zero size is allowed.
    let block = unsafe { adapter.alloc(layout) };
    // SAFETY: as above.
    let zeroed = unsafe { adapter.alloc_zeroed(layout) };
    for block in [block, zeroed] {
        assert!(!block.is_null() && block.addr() % 64 == 0);
        // SAFETY: the block is from the adapter with this layout.
        unsafe { adapter.dealloc(block, layout) };
    }
    assert_eq!(adapter.inner().calls(), 0);
}

#[test]
fn failure_is_null() {
    let adapter = GlobalAdapter::new(FailAfter::new(LibcMalloc, 0));
    for align in [8, 128] {
        let layout = Layout::from_size_align(8, align).expect("a layout");
        // SAFETY: the size is not zero.
        assert!(unsafe { adapter.alloc(layout) }.is_null());
        // SAFETY: the size is not zero.
        assert!(unsafe { adapter.alloc_zeroed(layout) }.is_null());
    }
}
