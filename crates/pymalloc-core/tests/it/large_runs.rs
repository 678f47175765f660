//! Large blocks from the process's span: the malloc contract, what reaches the layer below, threads and forks, and memory that goes.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

use malloc_api::testing::{Counting, alone, conformance, forked, resident_bytes};
use malloc_api::{LibcMalloc, Malloc, page_bytes};
use pymalloc_core::{
    LargeRuns, LargeRunsStats, LocalPymalloc, LockedPymalloc, POOLED_MAX, RUN_MAX,
    check_large_runs, large_runs_stats, release_large_runs,
};
use rstest::rstest;

use crate::misuse;

const KIB: usize = 1 << 10;

fn filled<A: Malloc>(alloc: &A, size: usize) -> NonNull<u8> {
    let block = alloc.malloc(size).expect("memory");
    // SAFETY: a live block of `size` bytes.
    unsafe { block.write_bytes(size as u8, size) };
    block
}

#[test]
fn pools_over_runs_conform() {
    let local = LocalPymalloc::new(LargeRuns::new(LibcMalloc));
    conformance(&local);
    assert_eq!(local.allocated_blocks(), 0);
    let locked = LockedPymalloc::new(LargeRuns::new(LibcMalloc));
    conformance(&locked);
    assert_eq!(locked.allocated_blocks(), 0);
    conformance(&LargeRuns::new(LibcMalloc));
    check_large_runs();
}

#[test]
fn the_layer_below_gets_what_is_smaller_or_larger() {
    let below = Counting::new(LibcMalloc);
    let runs = LargeRuns::new(&below);
    for (size, count) in
        [(0, 1), (POOLED_MAX, 1), (POOLED_MAX + 1, 0), (RUN_MAX, 0), (RUN_MAX + 1, 1)]
    {
        let block = runs.malloc(size).expect("memory");
        assert_eq!(below.counts().live_blocks, count, "{size}");
        // SAFETY: live, and not used again.
        unsafe { runs.free(Some(block)) };
        assert_eq!(below.counts().live_blocks, 0);
    }
}

#[test]
fn a_closed_layer_passes_everything_on_and_takes_its_blocks_back() {
    static IS_OPEN: AtomicBool = AtomicBool::new(true);
    let below = Counting::new(LibcMalloc);
    let is_open = |_: &_| IS_OPEN.load(Ordering::Relaxed);
    let runs = LargeRuns::while_open(&below, is_open, |_, _| {});
    let ours = filled(&runs, 20 * KIB);
    assert_eq!(below.counts().live_blocks, 0);
    IS_OPEN.store(false, Ordering::Relaxed);
    let other = filled(&runs, 20 * KIB);
    assert_eq!(below.counts().live_blocks, 1);
    // SAFETY: live; the old pointer is not used again.
    let grown = unsafe { runs.realloc(Some(ours), 2 << 20) }.expect("memory");
    // SAFETY: a live block of more bytes.
    let bytes = unsafe { std::slice::from_raw_parts(grown.as_ptr(), 20 * KIB) };
    assert!(bytes.iter().all(|byte| *byte == (20 * KIB) as u8), "moved as it was");
    for block in [grown, other] {
        // SAFETY: live, and not used again.
        unsafe { runs.free(Some(block)) };
    }
    assert_eq!(below.counts().live_blocks, 0);
    check_large_runs();
}

#[test]
fn a_growing_block_moves_seldom_and_a_shrinking_one_never() {
    alone("large_runs::a_growing_block_moves_seldom_and_a_shrinking_one_never", || {
        let runs = LargeRuns::new(LibcMalloc);
        let beside: Vec<_> = (0..20).map(|_| filled(&runs, 9 * KIB)).collect();
        let mut block = filled(&runs, 9 * KIB);
        let after = filled(&runs, 9 * KIB);
        let (mut moves, mut size) = (0, 9 * KIB);
        while size < 900 * KIB {
            size += size / 8;
            // SAFETY: live; the old pointer is not used again.
            let new = unsafe { runs.realloc(Some(block), size) }.expect("memory");
            moves += usize::from(new != block);
            block = new;
            // SAFETY: a live block of `size` bytes, of which the first ones are as they were.
            assert_eq!(unsafe { block.read() }, (9 * KIB) as u8);
        }
        assert!(moves < 20, "{moves} moves");
        for size in [700 * KIB, 10 * KIB, 100, 0] {
            // SAFETY: live; the old pointer is not used again.
            assert_eq!(unsafe { runs.realloc(Some(block), size) }, Some(block));
            check_large_runs();
        }
        for block in beside.into_iter().chain([block, after]) {
            // SAFETY: live, and not used again.
            unsafe { runs.free(Some(block)) };
        }
        assert_eq!(large_runs_stats().blocks, 0);
    });
}

#[test]
fn random_programs_keep_every_byte() {
    alone("large_runs::random_programs_keep_every_byte", || {
        let alloc = LocalPymalloc::new(LargeRuns::new(LibcMalloc));
        let mut rng = fastrand::Rng::with_seed(8);
        let mut live: Vec<(NonNull<u8>, usize, u8)> = Vec::new();
        let expect = |block: NonNull<u8>, size: usize, pattern: u8| {
            // SAFETY: a live block of `size` bytes.
            let bytes = unsafe { std::slice::from_raw_parts(block.as_ptr(), size) };
            assert!(bytes.iter().all(|byte| *byte == pattern));
        };
        for step in 0..6_000 {
            let most = if rng.u8(..) < 20 { 400 * KIB } else { 40 * KIB };
            let size = rng.usize(POOLED_MAX - 100..most);
            let pattern = rng.u8(..);
            if live.len() < 200 && rng.u8(..) < 130 {
                let block = match rng.bool() {
                    true => alloc.malloc(size).expect("memory"),
                    false => {
                        let block = alloc.calloc(1, size).expect("memory");
                        expect(block, size, 0);
                        block
                    }
                };
                // SAFETY: a live block of `size` bytes.
                unsafe { block.write_bytes(pattern, size) };
                live.push((block, size, pattern));
            } else if !live.is_empty() {
                let index = rng.usize(..live.len());
                let (block, old, was) = live.swap_remove(index);
                expect(block, old, was);
                if rng.u8(..) < 100 {
                    // SAFETY: live; the old pointer is not used again.
                    let new = unsafe { alloc.realloc(Some(block), size) }.expect("memory");
                    expect(new, old.min(size), was);
                    // SAFETY: a live block of `size` bytes.
                    unsafe { new.write_bytes(pattern, size) };
                    live.push((new, size, pattern));
                } else {
                    // SAFETY: live, and not used again.
                    unsafe { alloc.free(Some(block)) };
                }
            }
            if step % 500 == 0 {
                release_large_runs();
            }
            check_large_runs();
        }
        for (block, size, pattern) in live {
            expect(block, size, pattern);
            // SAFETY: live, and not used again.
            unsafe { alloc.free(Some(block)) };
        }
        assert_eq!((alloc.allocated_blocks(), large_runs_stats().blocks), (0, 0));
    });
}

/// What is free goes at once above a bound, the rest when asked, and then the addresses too.
#[test]
fn free_memory_goes_back() {
    alone("large_runs::free_memory_goes_back", || {
        let runs = LargeRuns::new(LibcMalloc);
        let mapped = || {
            let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
            let pages = statm.split(' ').next().and_then(|pages| pages.parse::<usize>().ok());
            pages.expect("a number") * page_bytes()
        };
        let before = (resident_bytes(), mapped());
        let blocks: Vec<_> = (0..500).map(|_| filled(&runs, 100 * KIB)).collect();
        let full = resident_bytes();
        assert!(full > before.0 + 45_000 * KIB);
        assert!(mapped() > before.1 + 45_000 * KIB);
        for block in blocks {
            // SAFETY: live, and not used again.
            unsafe { runs.free(Some(block)) };
        }
        assert!(resident_bytes() < before.0 + 6_000 * KIB, "{}", resident_bytes() - before.0);
        release_large_runs();
        assert!(resident_bytes() < before.0 + 1_000 * KIB, "{}", resident_bytes() - before.0);
        // What stays is the table of slots, and the stack of the thread that ends the periods.
        assert!(mapped() < before.1 + 6_000 * KIB, "{}", mapped() - before.1);
        let left = large_runs_stats();
        assert_eq!((left.blocks, left.used_bytes, left.free_resident_bytes), (0, 0, 0));
        check_large_runs();
    });
}

/// Some seconds later nothing is left, although nobody calls.
#[test]
fn what_is_free_goes_while_the_program_sleeps() {
    alone("large_runs::what_is_free_goes_while_the_program_sleeps", || {
        let runs = LargeRuns::new(LibcMalloc);
        let blocks: Vec<_> = (0..35).map(|_| filled(&runs, 100 * KIB)).collect();
        for block in blocks {
            // SAFETY: live, and not used again.
            unsafe { runs.free(Some(block)) };
        }
        assert!(large_runs_stats().free_resident_bytes > 3_000 * KIB, "stays for a while");
        let is_gone = (0..200).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(50));
            large_runs_stats().free_resident_bytes < 8 * KIB
        });
        assert!(is_gone, "{:?}", large_runs_stats());
    });
}

#[test]
fn children_find_the_span_whole_while_threads_use_it() {
    alone("large_runs::children_find_the_span_whole_while_threads_use_it", || {
        static IS_OVER: AtomicBool = AtomicBool::new(false);
        let work = || {
            let runs = LargeRuns::new(LibcMalloc);
            let blocks: Vec<_> = (1..40).map(|step| filled(&runs, 9 * KIB + 700 * step)).collect();
            for (step, block) in blocks.into_iter().enumerate() {
                // SAFETY: a live block, which was filled by its size.
                assert_eq!(unsafe { block.read() }, (9 * KIB + 700 * (step + 1)) as u8);
                // SAFETY: live, and not used again.
                unsafe { runs.free(Some(block)) };
            }
        };
        work();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !IS_OVER.load(Ordering::Relaxed) {
                        work();
                    }
                });
            }
            let child = || {
                work();
                check_large_runs();
            };
            // SAFETY: 1: the child calls what may follow a fork.
            let ends = (0..40).map(|_| unsafe { forked(child) }.1);
            let other = ends.into_iter().find(|end| !end.success());
            IS_OVER.store(true, Ordering::Relaxed);
            assert_eq!(other, None, "how the first child ended that hung, of 40");
        });
        check_large_runs();
    });
}

#[test]
fn statistics_tell_of_blocks_and_of_what_is_free() {
    alone("large_runs::statistics_tell_of_blocks_and_of_what_is_free", || {
        assert_eq!(large_runs_stats(), LargeRunsStats::default());
        let runs = LargeRuns::new(LibcMalloc);
        let [first, second, _] = [10, 20, 10].map(|kib| filled(&runs, kib * KIB));
        // SAFETY: live, and not used again.
        unsafe { runs.free(Some(second)) };
        let stats = large_runs_stats();
        assert_eq!((stats.blocks, stats.used_bytes), (2, 20 * KIB));
        // Of a step of 1 MiB, less the slot that no block has.
        assert_eq!(stats.free_bytes, 1022 * KIB - 20 * KIB);
        assert_eq!(stats.free_resident_bytes, 20 * KIB);
        // SAFETY: live, and not used again.
        unsafe { runs.free(Some(first)) };
        assert_eq!(large_runs_stats().blocks, 1);
    });
}

/// What the child does, by name.
#[test]
fn misuse() {
    let Some(name) = misuse::asked_for() else { return };
    let alloc = LockedPymalloc::new(LargeRuns::new(LibcMalloc));
    let blocks = [9, 20, 40, 9].map(|kib| filled(&alloc, kib * KIB));
    let free = |block: NonNull<u8>| {
        // SAFETY: not kept: this is the misuse that must be caught before it does harm.
        unsafe { alloc.free(Some(block)) };
    };
    match name.as_str() {
        "twice" => (0..2).for_each(|_| free(blocks[1])),
        // What is free is one run by then, which begins with the block before.
        "twice_between" => [0, 1, 1].into_iter().for_each(|index| free(blocks[index])),
        "twice_at_the_end" => (0..2).for_each(|_| free(blocks[3])),
        "twice_later" => {
            blocks.into_iter().for_each(free);
            free(blocks[1]);
        }
        // SAFETY: inside of the block.
        "interior" => free(unsafe { blocks[2].add(16 * KIB) }),
        // SAFETY: inside of the block.
        "unaligned" => free(unsafe { blocks[1].add(16) }),
        "resized" => {
            free(blocks[1]);
            // SAFETY: not kept: as above.
            let _ = unsafe { alloc.realloc(Some(blocks[1]), 30 * KIB) };
        }
        _ => blocks.into_iter().for_each(free),
    }
}

#[rstest]
#[case::twice("twice", Some("double free: the block is free already"))]
#[case::twice_between("twice_between", Some("double free: the block is free already"))]
#[case::twice_at_the_end("twice_at_the_end", Some("double free: the block is free already"))]
#[case::twice_later("twice_later", Some("double free: the block is free already"))]
#[case::interior("interior", Some("invalid free: the address begins no block"))]
#[case::unaligned("unaligned", Some("invalid free: the address begins no block"))]
#[case::resized("resized", Some("double free: the block is free already"))]
#[case::none("none", None)]
fn misuse_is_named(#[case] name: &str, #[case] message: Option<&str>) {
    misuse::is_named("large_runs::misuse", name, message);
}
