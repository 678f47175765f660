//! `AllocatorAdapter` with one version of `allocator_api2`; two modules compile this file, once for each.

use std::ptr::NonNull;

use malloc_api::testing::{Counting, FailAfter};
use malloc_api::{AllocatorAdapter, LibcMalloc};
use rstest::rstest;

use super::api::alloc::{Allocator, Layout};

fn layout(size: usize, align: usize) -> Layout {
    Layout::from_size_align(size, align).expect("a layout")
}

/// What the first `bytes` bytes of a filled block hold.
fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| i as u8 | 1).collect()
}

fn fill(block: NonNull<[u8]>) {
    let pattern = pattern(block.len());
    let from = NonNull::from(&pattern[..]).cast::<u8>();
    // SAFETY: the block is as long as the pattern, which is elsewhere.
    unsafe { block.cast::<u8>().copy_from_nonoverlapping(from, pattern.len()) };
}

/// The first `bytes` bytes of a block, which must be initialised.
fn bytes(block: NonNull<[u8]>, bytes: usize) -> Vec<u8> {
    assert!(bytes <= block.len());
    let bytes = NonNull::slice_from_raw_parts(block.cast::<u8>(), bytes);
    // SAFETY: the block is live and at least this long; the caller initialised it.
    unsafe { bytes.as_ref() }.to_vec()
}

fn assert_filled(block: NonNull<[u8]>, length: usize) {
    assert_eq!(bytes(block, length), pattern(length));
}

/// Every change of size and alignment, zero sizes included.
#[rstest]
fn grows_and_shrinks(
    #[values(0, 1, 40, 3000)] small: usize,
    #[values(0, 5, 500, 20_000)] extra: usize,
    #[values(1, 16, 64, 2048)] first: usize,
    #[values(8, 32, 1024)] second: usize,
) {
    let counting = Counting::new(LibcMalloc);
    let allocator = AllocatorAdapter::new(&counting);
    let (old, new) = (layout(small, first), layout(small + extra, second));
    let block = allocator.allocate(old).expect("out of memory");
    assert_eq!((block.len(), block.cast::<u8>().addr().get() % first), (small, 0));
    fill(block);
    // SAFETY: the block is live with `old`, and `new` is as long or longer.
    let block = unsafe { allocator.grow(block.cast(), old, new) }.expect("out of memory");
    assert_eq!((block.len(), block.cast::<u8>().addr().get() % second), (new.size(), 0));
    assert_filled(block, small);
    fill(block);
    // SAFETY: the block is live with `new`, and `old` is as long or shorter.
    let block = unsafe { allocator.shrink(block.cast(), new, old) }.expect("out of memory");
    assert_eq!((block.len(), block.cast::<u8>().addr().get() % first), (small, 0));
    assert_filled(block, small);
    // SAFETY: the block is live with `old`, and `new` is as long or longer.
    let block = unsafe { allocator.grow_zeroed(block.cast(), old, new) };
    let block = block.expect("out of memory");
    assert_filled(block, small);
    assert!(bytes(block, small + extra)[small..].iter().all(|&byte| byte == 0));
    // SAFETY: the block is live with `new` and not used afterwards.
    unsafe { allocator.deallocate(block.cast(), new) };
    assert_eq!(counting.counts().live_blocks, 0);
}

#[test]
fn zeroed_blocks_come_from_calloc() {
    let counting = Counting::new(LibcMalloc);
    let allocator = AllocatorAdapter::new(&counting);
    for align in [8, 256] {
        let block = allocator.allocate_zeroed(layout(100, align)).expect("memory");
        assert_eq!(bytes(block, 100), [0; 100]);
        // SAFETY: the block is live with this layout and not used afterwards.
        unsafe { allocator.deallocate(block.cast(), layout(100, align)) };
    }
    assert_eq!((counting.counts().calloc, counting.counts().malloc), (2, 0));
}

#[test]
fn zero_sizes_make_no_call() {
    let failing = FailAfter::new(LibcMalloc, 0);
    let allocator = AllocatorAdapter::new(&failing);
    for align in [1, 64, 4096] {
        let empty = layout(0, align);
        let block = allocator.allocate(empty).expect("no call that could fail");
        assert_eq!((block.len(), block.cast::<u8>().addr().get() % align), (0, 0));
        // SAFETY: the block is live with `empty`; both layouts are equally long.
        let block = unsafe { allocator.grow(block.cast(), empty, layout(0, 2 * align)) };
        let block = block.expect("no call that could fail");
        // SAFETY: the block is live with this layout and not used afterwards.
        unsafe { allocator.deallocate(block.cast(), layout(0, 2 * align)) };
    }
    assert_eq!(failing.calls(), 0);
}

#[rstest]
fn failure_leaves_the_block(#[values(1, 64)] first: usize, #[values(16, 32)] second: usize) {
    let failing = FailAfter::new(LibcMalloc, 1);
    let allocator = AllocatorAdapter::new(&failing);
    let (old, new) = (layout(50, first), layout(60, second));
    let block = allocator.allocate(old).expect("the first allocation goes through");
    fill(block);
    assert!(allocator.allocate(new).is_err());
    assert!(allocator.allocate_zeroed(new).is_err());
    // SAFETY: the block is live with `old`, and `new` is longer.
    assert!(unsafe { allocator.grow(block.cast(), old, new) }.is_err());
    // SAFETY: the block is live with `old`, and `new` is longer.
    assert!(unsafe { allocator.grow_zeroed(block.cast(), old, new) }.is_err());
    // SAFETY: the block is live with `old`, and the new layout is shorter.
    let shrunk = unsafe { allocator.shrink(block.cast(), old, layout(9, second)) };
    assert!(shrunk.is_err());
    assert_filled(block, 50);
    // SAFETY: the block is live with `old` and not used afterwards.
    unsafe { allocator.deallocate(block.cast(), old) };
}
