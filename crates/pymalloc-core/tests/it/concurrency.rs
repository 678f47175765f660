//! Threads, remote frees, and allocators that end before their blocks do.

use std::cell::Cell;
use std::ptr::NonNull;
use std::sync::mpsc;

use malloc_api::testing::{Counting, conformance};
use malloc_api::{LibcMalloc, Malloc};
use pymalloc_core::{
    ArenaSource, Graveyard, HugePages, LocalPymalloc, LockedPymalloc, MmapArenas, OwnedPymalloc,
};
use rstest::rstest;

type Owned = OwnedPymalloc<LibcMalloc, MmapArenas>;

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

/// What others free comes back to an owner whatever its requests are.
#[rstest]
#[case::malloc(|owned: &Owned| owned.malloc(64))]
#[case::calloc(|owned: &Owned| owned.calloc(4, 16))]
#[case::realloc(|owned: &Owned| {
    let block = owned.malloc(8);
    // SAFETY: 1: live; 2: only the answer is used.
    unsafe { owned.realloc(block, 3_000) }
})]
#[case::large(|owned: &Owned| owned.calloc(1, 20_000))]
fn an_owner_collects_in_every_call(#[case] request: fn(&Owned) -> Option<NonNull<u8>>) {
    let owned = OwnedPymalloc::new(LibcMalloc);
    let remote = owned.remote();
    for _ in 0..20_000 {
        let block = request(&owned).expect("memory");
        // SAFETY: 1: live; 2: not used again.
        unsafe { remote.free(Some(block)) };
    }
    let waiting = owned.allocated_blocks();
    assert!(waiting < 1_000, "{waiting} blocks wait for an owner that allocates all the time");
    owned.collect();
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

/// A source whose allocators are aligned to a line of the cache, and which counts its arenas.
#[repr(align(64))]
struct Aligned<'a>(&'a Cell<usize>);

// SAFETY: 1-6: those of `MmapArenas`, to which each method leads.
unsafe impl ArenaSource for Aligned<'_> {
    fn alloc(&self, size: usize) -> Option<NonNull<u8>> {
        self.0.set(self.0.get() + 1);
        MmapArenas::new().alloc(size)
    }

    unsafe fn free(&self, arena: NonNull<u8>, size: usize) {
        self.0.set(self.0.get() - 1);
        // SAFETY: 1: the caller's.
        unsafe { MmapArenas::new().free(arena, size) };
    }
}

/// A grave has its allocator's alignment, and goes with its arenas when the pools' last block is freed: blocks of the
/// fallback do not count.
#[test]
fn graves_are_aligned_and_go() {
    let arenas = Cell::new(0);
    let fallback = Counting::new(LibcMalloc);
    let graveyard = Graveyard::new();
    let mut blocks = Vec::new();
    for index in 1..=20 {
        let ended = LocalPymalloc::with_source(&fallback, Aligned(&arenas));
        let block = ended.malloc(100).expect("memory");
        let large = ended.malloc(20_000 + 16 * index).expect("memory");
        assert_eq!(graveyard.bury(ended), 1);
        blocks.push((block, large));
    }
    assert_eq!(arenas.get(), 20);
    for (index, (block, large)) in blocks.into_iter().enumerate() {
        // SAFETY: live blocks; the second is not in a pool.
        assert!(!unsafe { graveyard.free(large) });
        // SAFETY: 1: live; 2: not used again.
        assert!(unsafe { graveyard.free(block) });
        assert_eq!((arenas.get(), graveyard.allocated_blocks()), (19 - index, 19 - index));
        // SAFETY: live, and of the fallback.
        unsafe { fallback.free(Some(large)) };
    }
    assert_eq!(fallback.counts().live_blocks, 0, "the graves are gone too");
}

#[rstest]
fn every_huge_page_mode_serves_blocks(
    #[values(HugePages::Never, HugePages::Madvise, HugePages::Hugetlb)] mode: HugePages,
) {
    let alloc = LocalPymalloc::with_source(LibcMalloc, MmapArenas::with_huge_pages(mode));
    conformance(&alloc);
    alloc.check_invariants();
}
