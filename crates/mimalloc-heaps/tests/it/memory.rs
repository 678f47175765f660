//! Memory goes back: after threads, after frees elsewhere, and when asked for.

use std::mem;
use std::sync::mpsc;
use std::thread;

use malloc_api::testing::{alone, resident_bytes};
use malloc_api::{Malloc, ReleaseLevel};
use mimalloc_heaps::{HeapKind, InterpreterHeaps, MiMalloc};

use crate::threads::{Parcel, check, fill};
use crate::visit::quiet_world;

/// 1,000 threads exit with live blocks; every block is counted, and freed by others the memory is gone.
#[test]
fn a_thousand_exits_with_live_blocks_leave_nothing_behind() {
    alone("memory::a_thousand_exits_with_live_blocks_leave_nothing_behind", || {
        const THREADS: usize = 1000;
        const BLOCKS: usize = 250;
        const AT_ONCE: usize = 20;
        let interpreter = InterpreterHeaps::new().unwrap();
        let heaps = interpreter.attach().unwrap();
        let start = resident_bytes();
        let mut parcels = Vec::new();
        for round in 0..THREADS / AT_ONCE {
            thread::scope(|scope| {
                let leavers: Vec<_> = (0..AT_ONCE)
                    .map(|index| {
                        let interpreter = &interpreter;
                        scope.spawn(move || {
                            let heaps = interpreter.attach().unwrap();
                            let mut random =
                                fastrand::Rng::with_seed((round * AT_ONCE + index) as u64);
                            (0..BLOCKS)
                                .map(|number| {
                                    let kind = HeapKind::ALL[number % HeapKind::COUNT];
                                    let size = random.usize(16..1000);
                                    let block = heaps.malloc(kind, size).unwrap();
                                    fill(block, size, number as u8);
                                    (Parcel(block), size, number as u8)
                                })
                                .collect::<Vec<_>>()
                        })
                    })
                    .collect();
                leavers.into_iter().for_each(|leaver| parcels.extend(leaver.join().unwrap()));
            });
        }
        let count = |kind| interpreter.count_blocks(&quiet_world(), kind);
        let counts = HeapKind::ALL.map(count);
        assert_eq!(counts.iter().sum::<usize>(), THREADS * BLOCKS);
        let full = resident_bytes();
        // Half is freed by an attached thread, half by one that has never been.
        let rest = parcels.split_off(parcels.len() / 2);
        thread::scope(|scope| {
            scope.spawn(|| {
                for (Parcel(block), size, tag) in rest {
                    check(block, size, tag);
                    // SAFETY: a live block of mimalloc, not used afterwards.
                    unsafe { libmimalloc_sys::mi_free(block.as_ptr().cast()) };
                }
            });
        });
        for (Parcel(block), size, tag) in parcels {
            check(block, size, tag);
            // SAFETY: (1) live and (2) not used afterwards.
            unsafe { heaps.free(Some(block)) };
        }
        assert_eq!(HeapKind::ALL.map(count), [0; 4]);
        let released = interpreter.release(&quiet_world(), ReleaseLevel::Pages);
        let end = resident_bytes();
        println!(
            "resident: start {} MiB, with blocks {} MiB, end {} MiB; released {} MiB",
            start >> 20,
            full >> 20,
            end >> 20,
            released >> 20
        );
        let grown = end.saturating_sub(start);
        assert!(grown < 8 << 20, "{} KiB more than at the start", grown >> 10);
        assert_ne!(released, 0);
    });
}

#[test]
fn release_gives_a_gigabyte_of_small_blocks_back() {
    alone("memory::release_gives_a_gigabyte_of_small_blocks_back", || {
        let interpreter = InterpreterHeaps::new().unwrap();
        let start = resident_bytes();
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let heaps = interpreter.attach().unwrap();
                    let blocks: Vec<_> = (0..(1 << 30) / 8 / 256)
                        .map(|_| heaps.malloc(HeapKind::Object, 256).unwrap())
                        .inspect(|block| fill(*block, 256, 1))
                        .collect();
                    for block in blocks {
                        // SAFETY: (1) live and (2) not used afterwards.
                        unsafe { heaps.free(Some(block)) };
                    }
                });
            }
        });
        let heaps = interpreter.attach().unwrap();
        let released = heaps.release(ReleaseLevel::Pages);
        let grown = resident_bytes().saturating_sub(start);
        println!("released {} MiB, {} MiB above the start", released >> 20, grown >> 20);
        assert!(grown < 100 << 20, "{} MiB of 1 GiB are still here", grown >> 20);
    });
}

#[test]
fn pools_is_less_than_pages() {
    let interpreter = InterpreterHeaps::new().unwrap();
    let heaps = interpreter.attach().unwrap();
    let block = heaps.malloc(HeapKind::Mem, 100).unwrap();
    // SAFETY: (1) live and (2) not used afterwards.
    unsafe { heaps.free(Some(block)) };
    heaps.release(ReleaseLevel::Pools);
    assert_eq!(interpreter.statistics(&quiet_world()).total().areas, 1, "kept for the next block");
    heaps.release(ReleaseLevel::Pages);
    assert_eq!(interpreter.statistics(&quiet_world()).total().areas, 0);
}

/// The system refuses memory: calls answer `None`, and work again after a free.
#[test]
fn a_refusing_system_is_survived() {
    alone("memory::a_refusing_system_is_survived", || {
        let interpreter = InterpreterHeaps::new().unwrap();
        let heaps = interpreter.attach().unwrap();
        let limit = libc::rlimit { rlim_cur: 3 << 30, rlim_max: libc::RLIM_INFINITY };
        // SAFETY: a filled structure.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limit) }, 0);
        let mut blocks = Vec::new();
        while let Some(block) = heaps.malloc(HeapKind::Object, 64 << 20) {
            blocks.push(block);
        }
        assert!(!blocks.is_empty());
        assert_eq!(heaps.calloc(HeapKind::Gc, 1, 64 << 20), None);
        assert_eq!(heaps.malloc_aligned(HeapKind::Gc, 64 << 20, 4096), None);
        let last = blocks.pop();
        fill(last.unwrap(), 1000, 9);
        // SAFETY: (1) live and (2) used afterwards only if the call fails.
        assert_eq!(unsafe { heaps.realloc(HeapKind::Object, last, 200 << 20) }, None);
        check(last.unwrap(), 1000, 9);
        // SAFETY: (1) live and (2) not used afterwards.
        unsafe { heaps.free(last) };
        let again = heaps.malloc(HeapKind::Object, 32 << 20);
        assert!(again.is_some());
        for block in blocks.into_iter().map(Some).chain([again]) {
            // SAFETY: (1) live and (2) not used afterwards.
            unsafe { heaps.free(block) };
        }
    });
}

/// The blocks of a thread that another one frees, a few of each page at a time, are used again.
#[test]
fn a_thread_that_only_frees_leaves_memory_to_others() {
    alone("memory::a_thread_that_only_frees_leaves_memory_to_others", || {
        const LIVE: usize = 200_000;
        const ROUNDS: usize = 5;
        let (to_freer, from_owner) = mpsc::sync_channel::<Vec<Parcel>>(4);
        let freer = thread::spawn(move || {
            for Parcel(block) in from_owner.into_iter().flatten() {
                // SAFETY: (1) live and (2) not used afterwards.
                unsafe { MiMalloc.free(Some(block)) };
            }
        });
        let mut random = fastrand::Rng::with_seed(7);
        let mut make = || {
            let size = random.usize(16..=208);
            let block = MiMalloc.malloc(size).unwrap();
            fill(block, size, 1);
            (Parcel(block), random.usize(..LIVE))
        };
        let mut live: Vec<_> = (0..LIVE).map(|_| make().0).collect();
        let full = resident_bytes();
        for _ in 0..LIVE * ROUNDS / 1000 {
            let replaced = (0..1000).map(|_| make());
            let old = replaced.map(|(new, at)| mem::replace(&mut live[at], new)).collect();
            to_freer.send(old).unwrap();
        }
        let end = resident_bytes();
        drop(to_freer);
        freer.join().unwrap();
        assert!(end < full + full / 2, "{} MiB have become {}", full >> 20, end >> 20);
    });
}
