//! Over-aligned blocks: alignment, content, failure, and no leak.

use std::ptr::NonNull;

use malloc_api::testing::{Counting, FailAfter, try_conformance};
use malloc_api::{
    LibcMalloc, MAX_REQUEST, MIN_ALIGN, Malloc, aligned_calloc, aligned_free, aligned_malloc,
    aligned_realloc,
};
use proptest::prelude::*;
use rstest::rstest;

use crate::toy::{Bug, Toy};

/// Any allocator, with every block aligned to `align`: conformance then checks the aligned functions line by line.
struct Aligned<A> {
    inner: A,
    align: usize,
}

impl<A> Aligned<A> {
    fn check(&self, block: Option<NonNull<u8>>) -> Option<NonNull<u8>> {
        assert!(block.is_none_or(|block| block.addr().get() % self.align == 0));
        block
    }
}

// SAFETY: the aligned functions keep the promises for any power of two, which is what is tested here.
unsafe impl<A: Malloc> Malloc for Aligned<A> {
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        self.check(aligned_malloc(&self.inner, self.align, size))
    }

    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        self.check(aligned_calloc(&self.inner, self.align, nelem, elsize))
    }

    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        // SAFETY: (1) all blocks have this alignment, and the rest is the caller's 1 and 2.
        self.check(unsafe { aligned_realloc(&self.inner, ptr, self.align, new_size) })
    }

    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        // SAFETY: (1) all blocks have this alignment, and the rest is the caller's 1 and 2.
        unsafe { aligned_free(&self.inner, ptr, self.align) }
    }
}

#[rstest]
fn aligned_blocks_keep_the_contract(
    #[values(1, 2, 8, 16, 32, 64, 128, 512, 4096, 65_536)] align: usize,
) {
    let inner = Counting::new(LibcMalloc);
    let aligned = Aligned { inner, align };
    assert_eq!(try_conformance(&aligned), Ok(()));
    assert_eq!(aligned.inner.counts().live_blocks, 0);
}

#[test]
fn aligned_calloc_zeroes_through_calloc() {
    let inner = Counting::new(LibcMalloc);
    let block = aligned_calloc(&inner, 64, 3, 5);
    assert_eq!((inner.counts().calloc, inner.counts().malloc), (1, 0));
    // SAFETY: (1) the block is live with this alignment; (2) it is not used afterwards.
    unsafe { aligned_free(&inner, block, 64) };
}

#[rstest]
#[case(0, 8)]
#[case(3, 8)]
#[case(48, 8)]
#[case(usize::MAX, 8)]
#[case(64, MAX_REQUEST)]
#[case(64, usize::MAX)]
#[case(1 << (usize::BITS - 1), 8)]
fn impossible_requests_answer_none(#[case] align: usize, #[case] size: usize) {
    assert_eq!(aligned_malloc(&LibcMalloc, align, size), None);
    assert_eq!(aligned_calloc(&LibcMalloc, align, 1, size), None);
    assert_eq!(aligned_calloc(&LibcMalloc, 64, usize::MAX, 2), None);
    // SAFETY: (1) `None` is allowed; (2) there is no old block.
    assert_eq!(unsafe { aligned_realloc(&LibcMalloc, None, align, size) }, None);
}

#[test]
fn a_failed_realloc_leaves_the_block() {
    let failing = FailAfter::new(LibcMalloc, 1);
    let block = aligned_malloc(&failing, 256, 3).expect("the first allocation goes through");
    // SAFETY: the block is 3 bytes long.
    unsafe { block.write_bytes(7, 3) };
    for size in [0, 3, 1000, usize::MAX] {
        // SAFETY: (1) the block is live with this alignment; (2) only failures are expected.
        assert_eq!(unsafe { aligned_realloc(&failing, Some(block), 256, size) }, None);
    }
    // SAFETY: the block is still live, 3 bytes long and initialised.
    assert_eq!(unsafe { block.cast::<[u8; 3]>().read() }, [7; 3]);
    // SAFETY: (1) the block is live with this alignment; (2) it is not used afterwards.
    unsafe { aligned_free(&failing, Some(block), 256) };
}

const PATTERN: [u8; 3000] = {
    let mut pattern = [0; 3000];
    let mut i = 0;
    while i < pattern.len() {
        pattern[i] = (i % 251) as u8;
        i += 1;
    }
    pattern
};

proptest! {
    /// The toy moves every block to another offset from its alignment, so content must follow.
    #[test]
    fn content_follows_the_alignment(
        shift in 5_u32..12,
        sizes in prop::collection::vec(0_usize..3000, 1..20),
        noise in prop::collection::vec(0_usize..10, 20),
    ) {
        let align = 1 << shift;
        let toy = Toy::new(Bug::None);
        let mut block = None;
        let mut held = 0;
        for (&size, &noise) in sizes.iter().zip(&noise) {
            toy.malloc(noise * MIN_ALIGN);
            // SAFETY: (1) the block is `None` or live with this alignment; (2) it is replaced by the answer.
            let new = unsafe { aligned_realloc(&toy, block, align, size) }.expect("out of memory");
            prop_assert_eq!(new.addr().get() % align, 0);
            let kept = NonNull::slice_from_raw_parts(new, held.min(size));
            // SAFETY: the block is as long, and was filled that far before it was resized.
            prop_assert_eq!(unsafe { kept.as_ref() }, &PATTERN[..held.min(size)]);
            // SAFETY: the block is `size` bytes long, and the pattern longer.
            unsafe { new.copy_from_nonoverlapping(NonNull::from(&PATTERN).cast(), size) };
            (block, held) = (Some(new), size);
        }
    }
}
