//! The region's arenas in huge pages, and without: zero when new, apart from each other, and gone when they are free.

use std::ptr::NonNull;

use malloc_api::page_bytes;
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

/// Whether the system has transparent huge pages for who asks.
pub(crate) fn are_transparent() -> bool {
    let path = "/sys/kernel/mm/transparent_hugepage/enabled";
    let mode = std::fs::read_to_string(path).unwrap_or_default();
    page_bytes() == 4096 && (mode.contains("[madvise]") || mode.contains("[always]"))
}

/// Arenas whose memory has gone in part get it back, with what is there and zeros elsewhere, and nobody else's neighbour meanwhile.
#[test]
fn what_is_there_stays_when_the_rest_comes_back() {
    // Where huge pages were refused to other tests nobody asks for them again.
    alone("huge_pages::what_is_there_stays_when_the_rest_comes_back", purge_and_regrow);
}

fn purge_and_regrow() {
    let source = MmapArenas::new();
    let mut random = fastrand::Rng::with_seed(11);
    let [low, _high, lone] = [(); 3].map(|()| source.alloc_for(ARENA_BYTES, 0, 0).unwrap().0);
    // SAFETY: in no list, so not used again.
    unsafe { source.free(low, ARENA_BYTES) };
    words(lone)[0] = 1;
    // SAFETY: 1: nobody has the neighbour.
    if unsafe { source.regrow(lone, false) } {
        let (next, supply) = source.alloc_for(ARENA_BYTES, 0, 0).unwrap();
        assert_eq!(next.addr().get() ^ lone.addr().get(), ARENA_BYTES, "before one without memory");
        assert_eq!(supply, Supply::Resident, "the other half of the page");
        // SAFETY: in no list, so not used again.
        unsafe { source.free(next, ARENA_BYTES) };
    }
    words(lone)[0] = 0;
    let mut live: Vec<(NonNull<u8>, u64)> = vec![(lone, 0)];
    let mut regrown = [0; 2];
    for round in 1..300 {
        let (arena, mark) = match live.len() < 12 && random.bool() || live.is_empty() {
            true => (source.alloc_for(ARENA_BYTES, 0, 0).unwrap().0, round),
            false => live.swap_remove(random.usize(..live.len())),
        };
        words(arena).fill(mark);
        let (first, rest) = words(arena).split_at_mut(random.usize(..=24) * (WORDS / 32));
        let gone = NonNull::from(&mut rest[..WORDS / 4]).cast();
        // SAFETY: 1: a quarter of the arena, of which nothing is needed.
        assert_eq!(unsafe { source.purge(gone, ARENA_BYTES / 4) }, ARENA_BYTES / 4);
        let neighbour = arena.addr().get() ^ ARENA_BYTES;
        let has_both = live.iter().any(|(other, _)| other.addr().get() == neighbour);
        // SAFETY: 1: nobody says that he has both.
        assert!(!has_both || !unsafe { source.regrow(arena, false) }, "another one's arena");
        // SAFETY: 1: both are in `live`.
        regrown[usize::from(has_both)] += i32::from(unsafe { source.regrow(arena, has_both) });
        let (gone, rest) = rest.split_at(WORDS / 4);
        assert!(gone.iter().all(|word| *word == 0), "what had gone");
        assert!(first.iter().chain(rest).all(|word| *word == mark), "what was there");
        if random.bool() {
            words(arena).fill(mark);
            live.push((arena, mark));
        } else {
            // SAFETY: in no list, so not used again.
            unsafe { source.free(arena, ARENA_BYTES) };
        }
        let is_kept = |(arena, mark): &(_, u64)| words(*arena).iter().all(|word| word == mark);
        assert!(live.iter().all(is_kept), "another arena");
    }
    if are_transparent() {
        assert!(regrown.iter().all(|times| *times > 10), "{regrown:?} times");
    }
    for (arena, _) in live {
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
