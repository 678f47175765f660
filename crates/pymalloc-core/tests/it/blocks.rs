//! Blocks: the malloc contract, the counts, and random programs against a shadow.

use std::ptr::NonNull;

use malloc_api::annotate::RED_ZONE_BYTES;
use malloc_api::testing::conformance;
use malloc_api::{LibcMalloc, Malloc};
use pymalloc_core::{
    LocalPymalloc, LockedPymalloc, POOLED_MAX, ReleaseLevel, SMALL_MAX, SizeClass,
};
use rstest::rstest;

#[test]
fn a_local_allocator_conforms() {
    let alloc = LocalPymalloc::new(LibcMalloc);
    conformance(&alloc);
    alloc.check_invariants();
    assert_eq!(alloc.allocated_blocks(), 0);
}

#[test]
fn a_locked_allocator_conforms() {
    let alloc = LockedPymalloc::new(LibcMalloc);
    conformance(&alloc);
    alloc.check_invariants();
    assert_eq!(alloc.allocated_blocks(), 0);
}

/// A random program: blocks hold a pattern of their own, which is read back before each end.
#[rstest]
#[case::small(1, SMALL_MAX)]
#[case::pooled(2, POOLED_MAX)]
#[case::all(3, 4 * POOLED_MAX)]
fn random_programs_keep_every_byte(#[case] seed: u64, #[case] max: usize) {
    let alloc = LocalPymalloc::new(LibcMalloc);
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut live: Vec<(NonNull<u8>, usize, u8)> = Vec::new();
    let expect = |(ptr, size, pattern): (NonNull<u8>, usize, u8)| {
        // SAFETY: a live block of `size` bytes.
        let bytes = unsafe { std::slice::from_raw_parts(ptr.as_ptr(), size) };
        assert!(bytes.iter().all(|byte| *byte == pattern));
    };
    for step in 0..60_000 {
        let bound = rng.usize(0..=max);
        let size = rng.usize(0..=bound);
        // Phases that grow and phases that shrink.
        let grow = if step / 10_000 % 2 == 0 { 70 } else { 30 };
        let pattern = rng.u8(..);
        let fill = |ptr: NonNull<u8>, size: usize| {
            // SAFETY: a live block of `size` bytes.
            unsafe { ptr.write_bytes(pattern, size) };
            (ptr, size, pattern)
        };
        if live.is_empty() || rng.u32(..100) < grow {
            let ptr = if rng.bool() {
                alloc.malloc(size).unwrap()
            } else {
                let ptr = alloc.calloc(1, size).unwrap();
                expect((ptr, size, 0));
                ptr
            };
            assert_eq!(ptr.addr().get() % 16, 0);
            live.push(fill(ptr, size));
        } else {
            let index = rng.usize(..live.len());
            let (ptr, old, pattern) = live[index];
            expect(live[index]);
            if rng.u32(..4) == 0 {
                // SAFETY: live, and replaced in the list.
                let ptr = unsafe { alloc.realloc(Some(ptr), size) }.unwrap();
                expect((ptr, old.min(size), pattern));
                live[index] = fill(ptr, size);
            } else {
                // SAFETY: live, and removed from the list.
                unsafe { alloc.free(Some(ptr)) };
                live.swap_remove(index);
            }
        }
        assert_eq!(alloc.allocated_blocks(), live.len());
        if step % 977 == 0 {
            alloc.check_invariants();
        }
        if step % 9_973 == 0 {
            alloc.release(
                [ReleaseLevel::Arenas, ReleaseLevel::Pools, ReleaseLevel::Pages][step % 3],
            );
            alloc.check_invariants();
        }
    }
    for (ptr, size, pattern) in live {
        expect((ptr, size, pattern));
        // SAFETY: live, and forgotten.
        unsafe { alloc.free(Some(ptr)) };
    }
    alloc.check_invariants();
    assert_eq!(alloc.allocated_blocks(), 0);
    alloc.release(ReleaseLevel::Arenas);
    assert_eq!(alloc.stats().arenas_current, 0);
}

/// CPython's rule: a block stays where it is unless it would shrink by a quarter or more, or leave its class.
#[test]
fn a_block_that_shrinks_by_a_quarter_moves() {
    let alloc = LocalPymalloc::new(LibcMalloc);
    for (size, stays) in [(112, true), (85, true), (84, false), (16, false), (113, false)] {
        let block = alloc.malloc(112 - RED_ZONE_BYTES).expect("memory");
        // SAFETY: 1: live; 2: compared alone.
        let new = unsafe { alloc.realloc(Some(block), size - RED_ZONE_BYTES) }.expect("memory");
        assert_eq!(new == block, stays, "from 112 to {size} bytes");
        // SAFETY: live, and not used again.
        unsafe { alloc.free(Some(new)) };
    }
}

#[test]
fn every_class_hands_out_distinct_blocks_and_takes_them_back() {
    let alloc = LocalPymalloc::new(LibcMalloc);
    for class in SizeClass::all() {
        let size = class.size() - RED_ZONE_BYTES;
        if size == 0 {
            continue; // No request fits beside a red zone.
        }
        let mut blocks: Vec<_> =
            (0..class.blocks_per_pool() * 3 + 1).map(|_| alloc.malloc(size).unwrap()).collect();
        alloc.check_invariants();
        let stats = alloc.stats().classes[class.index()];
        assert_eq!((stats.pools, stats.blocks_in_use), (4, blocks.len()));
        blocks.sort_unstable();
        for pair in blocks.windows(2) {
            assert!(pair[1].addr().get() - pair[0].addr().get() >= class.size());
        }
        for block in blocks {
            assert!(alloc.owns(block.as_ptr()));
            assert_eq!(alloc.block_size(block.as_ptr()), Some(size));
            // SAFETY: live, and forgotten.
            unsafe { alloc.free(Some(block)) };
        }
        alloc.check_invariants();
    }
    assert_eq!(alloc.allocated_blocks(), 0);
}
