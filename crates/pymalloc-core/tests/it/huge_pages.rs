//! The region's arenas in huge pages, and without: zero when new, apart from each other, and gone when they are free.

use std::ptr::NonNull;

use malloc_api::testing::alone;
use pymalloc_core::{ARENA_BYTES, ArenaSource, HugePages, MmapArenas, Supply};
use rstest::rstest;

const WORDS: usize = ARENA_BYTES / 8;

fn words(arena: NonNull<u8>) -> &'static mut [u64] {
    // SAFETY: an arena that this test holds, in one borrow at a time.
    unsafe { std::slice::from_raw_parts_mut(arena.cast().as_ptr(), WORDS) }
}

/// Arenas come and go at random; each is zero when it comes, and keeps what is written until it goes.
#[rstest]
fn arenas_are_zero_when_new_and_nobody_elses(
    #[values(HugePages::Never, HugePages::Madvise, HugePages::Hugetlb)] mode: HugePages,
    #[values(0, 1 << 30)] held: usize,
) {
    let source = MmapArenas::with_huge_pages(mode);
    let mut random = fastrand::Rng::with_seed(7);
    let mut live: Vec<(NonNull<u8>, u64)> = Vec::new();
    for round in 1..400 {
        if live.len() < 2 || live.len() < 24 && random.bool() {
            let (arena, _) = source.alloc_for(ARENA_BYTES, held, 0).unwrap();
            assert!(words(arena).iter().all(|word| *word == 0), "an arena with old bytes");
            words(arena).fill(round);
            live.push((arena, round));
        } else {
            let (arena, mark) = live.swap_remove(random.usize(..live.len()));
            assert!(words(arena).iter().all(|word| *word == mark), "an arena that two had");
            // SAFETY: taken off the list, so not used again.
            unsafe { source.free(arena, ARENA_BYTES) };
        }
    }
    for (arena, mark) in live {
        assert!(words(arena).iter().all(|word| *word == mark), "an arena that two had");
        // SAFETY: taken off the list, so not used again.
        unsafe { source.free(arena, ARENA_BYTES) };
    }
}

/// A program that fills its arenas in haste has their memory before it is touched, any other as far as it is touched.
#[test]
fn memory_comes_ahead_of_need_in_haste_alone() {
    alone("huge_pages::memory_comes_ahead_of_need_in_haste_alone", || {
        let source = MmapArenas::new();
        let supply_after = |held, missed| {
            let (arena, supply) = source.alloc_for(ARENA_BYTES, held, missed).unwrap();
            // SAFETY: not used again.
            unsafe { source.free(arena, ARENA_BYTES) };
            supply
        };
        let supply_of = |held| supply_after(held, 0);
        let work = || {
            let begin = std::time::Instant::now();
            while begin.elapsed().as_millis() < 100 {
                std::hint::spin_loop();
            }
        };
        for _ in 0..3 {
            supply_of(1 << 30);
            supply_of(1 << 30);
            assert_ne!(supply_of(1 << 30), Supply::Sparse, "at once");
            assert_eq!(supply_of(1 << 20), Supply::Sparse, "a small program");
            work();
            assert_eq!(supply_of(1 << 30), Supply::Sparse, "after other work");
            work();
            assert_eq!(supply_after(1 << 30, ARENA_BYTES), Supply::Sparse, "less than a huge page");
            work();
            assert_ne!(supply_after(1 << 20, 2 * ARENA_BYTES), Supply::Sparse, "had before");
        }
    });
}

/// Where the system has no reserved huge page left, arenas are made of small pages, which come one by one.
#[test]
fn without_reserved_pages_arenas_have_small_ones() {
    let system = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let free = system.lines().find_map(|line| line.strip_prefix("HugePages_Free:"));
    if free.map(str::trim) != Some("0") {
        eprintln!("skipped: the system has reserved huge pages, or does not say");
        return;
    }
    alone("huge_pages::without_reserved_pages_arenas_have_small_ones", || {
        let source = MmapArenas::with_huge_pages(HugePages::Hugetlb);
        let (arena, supply) = source.alloc_for(ARENA_BYTES, 1 << 30, 0).unwrap();
        assert_ne!(supply, Supply::Resident);
        // SAFETY: not used again.
        unsafe { source.free(arena, ARENA_BYTES) };
    });
}
