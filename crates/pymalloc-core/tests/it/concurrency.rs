//! Threads, remote frees, and allocators that end before their blocks do.

use std::ptr::NonNull;
use std::sync::mpsc;

use malloc_api::testing::conformance;
use malloc_api::{LibcMalloc, Malloc};
use pymalloc_core::{
    Graveyard, HugePages, LocalPymalloc, LockedPymalloc, MmapArenas, OwnedPymalloc,
};
use rstest::rstest;

/// A block on its way to another thread.
struct Sent(NonNull<u8>);

// SAFETY: the sender forgets the block.
unsafe impl Send for Sent {}

#[test]
fn an_owned_allocator_conforms() {
    let owned = OwnedPymalloc::new(LibcMalloc);
    conformance(&owned);
    owned.check_invariants();
    assert_eq!(owned.allocated_blocks(), 0);
}

#[test]
fn remote_frees_come_back_to_the_owner() {
    let owned = OwnedPymalloc::new(LibcMalloc);
    let remote = owned.remote();
    std::thread::scope(|scope| {
        let senders: Vec<_> = (0..3)
            .map(|_| {
                let (sender, receiver) = mpsc::channel::<Sent>();
                scope.spawn(move || {
                    for Sent(block) in receiver {
                        // SAFETY: 1: live; 2: forgotten by both sides.
                        unsafe { remote.free(Some(block)) };
                    }
                });
                sender
            })
            .collect();
        for index in 0..60_000 {
            let block = owned.malloc(index % 9_000).unwrap();
            // SAFETY: a live block; one of 0 bytes has a word here.
            unsafe { block.write_bytes(0xAB, (index % 9_000).max(8)) };
            senders[index % 3].send(Sent(block)).unwrap();
        }
    });
    owned.collect();
    owned.check_invariants();
    assert_eq!(owned.allocated_blocks(), 0);
}

#[test]
fn a_locked_allocator_serves_threads() {
    let alloc = LockedPymalloc::new(LibcMalloc);
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let alloc = &alloc;
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(seed);
                let mut live: Vec<(NonNull<u8>, u8)> = Vec::new();
                for _ in 0..20_000 {
                    if live.len() < 100 || rng.bool() {
                        let pattern = rng.u8(..);
                        let block = alloc.malloc(rng.usize(1..3_000)).unwrap();
                        // SAFETY: a live block of 1 byte at least.
                        unsafe { block.write(pattern) };
                        live.push((block, pattern));
                    } else {
                        let (block, pattern) = live.swap_remove(rng.usize(..live.len()));
                        // SAFETY: live.
                        assert_eq!(unsafe { block.read() }, pattern);
                        // SAFETY: live, and removed from the list.
                        unsafe { alloc.free(Some(block)) };
                    }
                }
                for (block, _) in live {
                    // SAFETY: live, and forgotten.
                    unsafe { alloc.free(Some(block)) };
                }
            });
        }
    });
    alloc.check_invariants();
    assert_eq!(alloc.allocated_blocks(), 0);
}

#[test]
fn buried_blocks_can_be_freed() {
    let graveyard = Graveyard::new();
    let empty = LocalPymalloc::new(LibcMalloc);
    assert_eq!(graveyard.bury(empty), 0);
    let mut blocks = Vec::new();
    for _ in 0..3 {
        let ended = LocalPymalloc::new(LibcMalloc);
        blocks.extend((0..100).map(|_| ended.malloc(100).unwrap()));
        assert_eq!(graveyard.bury(ended), 100);
    }
    let living = LocalPymalloc::new(LibcMalloc);
    let block = living.malloc(100).unwrap();
    // SAFETY: live, of an allocator that is not buried.
    assert!(!unsafe { graveyard.free(block) });
    // SAFETY: live, and forgotten.
    unsafe { living.free(Some(block)) };
    fastrand::Rng::with_seed(1).shuffle(&mut blocks);
    for (index, block) in blocks.into_iter().enumerate() {
        assert_eq!(graveyard.allocated_blocks(), 300 - index);
        // SAFETY: live, and forgotten.
        assert!(unsafe { graveyard.free(block) });
    }
    assert_eq!(graveyard.allocated_blocks(), 0);
}

#[rstest]
fn every_huge_page_mode_serves_blocks(
    #[values(HugePages::Never, HugePages::Madvise, HugePages::Hugetlb)] mode: HugePages,
) {
    let alloc = LocalPymalloc::with_source(LibcMalloc, MmapArenas::with_huge_pages(mode));
    conformance(&alloc);
    alloc.check_invariants();
}
