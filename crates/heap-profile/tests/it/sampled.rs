//! A sampled profile: right on the average, and balanced to the byte when everything is freed.

use std::cell::UnsafeCell;
use std::ptr::NonNull;

use heap_profile::{Profile, SampledProfiler};
use malloc_api::testing::FailAfter;
use malloc_api::{Domain, LibcMalloc, Malloc};
use rstest::rstest;

use crate::script::{Script, profile, run, serialized};

#[rstest]
#[case::small(16, 200_000)]
#[case::middling(700, 20_000)]
#[case::about_the_interval(4_096, 5_000)]
#[case::above_it(100_000, 200)]
fn what_is_live_is_estimated_and_all_of_it_goes(
    #[case] size: usize,
    #[case] count: usize,
    #[values(profile(32).1, serialized().1)] profile: &'static Profile<&'static Script>,
) {
    let heap = SampledProfiler::new(LibcMalloc, profile, Domain::Obj, 4_096);
    let blocks: Vec<_> = (0..count).map(|_| run(&[101], || heap.malloc(size))).collect();
    let live = profile.snapshot().live();
    // Some 800 to 20,000 samples: seven standard deviations are a fourth at most.
    let within = |seen: u64, truth: usize| (seen as f64 / truth as f64 - 1.0).abs() < 0.25;
    assert!(within(live.bytes, size * count), "{} of {} bytes", live.bytes, size * count);
    assert!(within(live.blocks, count), "{} of {count} blocks", live.blocks);
    // SAFETY: (1) live; (2) not used again.
    blocks.into_iter().for_each(|block| unsafe { heap.free(block) });
    assert_eq!(profile.live_bytes(), 0);
}

#[test]
fn a_moved_block_is_counted_once() {
    let (_, profile) = profile(32);
    let heap = SampledProfiler::new(LibcMalloc, profile, Domain::Obj, 1);
    let mut block = run(&[101], || heap.malloc(100));
    for size in [1_000, 100_000, 50, 200_000] {
        // SAFETY: (1) live; (2) the old one is not used again.
        block = run(&[102], || unsafe { heap.realloc(block, size) });
        assert_eq!(profile.live_bytes(), size as u64);
    }
    // SAFETY: (1) live; (2) not used again.
    unsafe { heap.free(block) };
    assert_eq!(profile.live_bytes(), 0);
}

#[test]
fn a_realloc_that_fails_leaves_the_block_noted() {
    let (_, profile) = profile(32);
    let heap = SampledProfiler::new(FailAfter::new(LibcMalloc, 2), profile, Domain::Obj, 1);
    // A thread's first countdown begins with its first block: the second one is chosen for certain.
    let blocks = [100, 900].map(|size| run(&[101], || heap.malloc(size)));
    let before = profile.live_bytes();
    // SAFETY: (1) live; (2) it fails.
    assert!(unsafe { heap.realloc(blocks[1], 5_000) }.is_none());
    assert_eq!(profile.live_bytes(), before);
    // SAFETY: (1) live; (2) not used again.
    blocks.into_iter().for_each(|block| unsafe { heap.free(block) });
    assert_eq!(profile.live_bytes(), 0);
}

#[test]
fn a_block_is_known_at_the_address_that_another_had_before() {
    let (_, profile) = profile(32);
    let heap = SampledProfiler::new(LibcMalloc, profile, Domain::Obj, 1);
    for round in 0..10_000_usize {
        let block = run(&[101], || heap.malloc(1 + round % 64));
        // SAFETY: (1) live; (2) not used again.
        unsafe { heap.free(block) };
    }
    assert_eq!(profile.live_bytes(), 0);
}

#[test]
fn without_an_interval_every_block_is_noted_as_what_it_is() {
    let (_, profile) = profile(32);
    let heap = SampledProfiler::new(LibcMalloc, profile, Domain::Raw, 0);
    let blocks: Vec<_> = (1..=1_000).map(|size| run(&[101], || heap.malloc(size))).collect();
    let live = profile.snapshot().live();
    assert_eq!((live.bytes, live.blocks), (500_500, 1_000));
    // SAFETY: (1) live; (2) not used again.
    blocks.into_iter().for_each(|block| unsafe { heap.free(block) });
    assert_eq!(profile.live_bytes(), 0);
}

#[test]
fn a_block_that_somebody_else_freed_goes_when_its_address_comes_again() {
    let (_, profile) = profile(32);
    let heap = SampledProfiler::new(OneBlock::default(), profile, Domain::Raw, 0);
    let first = run(&[101], || heap.malloc(10));
    let second = run(&[102], || heap.malloc(12));
    assert_eq!((first, profile.live_bytes()), (second, 12));
    // SAFETY: (1) live; (2) not used again.
    unsafe { heap.free(second) };
    assert_eq!(profile.live_bytes(), 0);
}

/// Hands out one block again and again, as if it had been freed meanwhile.
#[derive(Default)]
struct OneBlock(UnsafeCell<[u64; 8]>);

// SAFETY: 1: one block of 64 aligned bytes, which the test has no two owners of; 2 and 3: `calloc` and `realloc` are not
// called; 4: nothing unwinds; 5: one thread.
unsafe impl Malloc for OneBlock {
    fn malloc(&self, _: usize) -> Option<NonNull<u8>> {
        NonNull::new(self.0.get().cast())
    }

    fn calloc(&self, _: usize, _: usize) -> Option<NonNull<u8>> {
        None
    }

    unsafe fn realloc(&self, _: Option<NonNull<u8>>, _: usize) -> Option<NonNull<u8>> {
        None
    }

    unsafe fn free(&self, _: Option<NonNull<u8>>) {}
}
