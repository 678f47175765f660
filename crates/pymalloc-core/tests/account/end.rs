//! The memory of an account that has ended: the background has it, and whoever needs an arena.

use std::time::Duration;

use malloc_api::testing::{alone, resident_bytes};
use malloc_api::{Budget, Malloc};
use pymalloc_core::{ARENA_BYTES, ArenaSource, MmapArenas, local_account};

/// Fills an account with `count` blocks of 100 bytes, and drops it with all of them.
fn come_and_go(count: usize) {
    let budget = Budget::new(usize::MAX);
    let account = local_account(&budget);
    for _ in 0..count {
        let block = account.malloc(100).unwrap();
        // SAFETY: a live block of 100 bytes.
        unsafe { block.write_bytes(7, 100) };
    }
}

/// Takes `count` arenas, each of which must be zero.
fn take_zeroed(source: &MmapArenas, count: usize) {
    for _ in 0..count {
        let arena = source.alloc(ARENA_BYTES).unwrap();
        // SAFETY: 1: an arena is that long; `IS_ZEROED`, or this test is red.
        let bytes = unsafe { std::slice::from_raw_parts(arena.as_ptr(), ARENA_BYTES) };
        assert!(bytes.iter().all(|byte| *byte == 0), "an arena is not zero");
    }
}

/// The caller does not wait until the system has the memory back; it has that a few seconds later, and the thread has ended.
#[test]
fn the_memory_of_an_ended_account_goes_in_the_background() {
    alone("end::the_memory_of_an_ended_account_goes_in_the_background", || {
        let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
        let source = MmapArenas::new();
        // The first arena of the account has a neighbour that stays.
        let neighbour = source.alloc(ARENA_BYTES);
        let before = (resident_bytes(), threads());
        come_and_go(500_000);
        assert!(resident_bytes() - before.0 > 40 << 20, "the caller gave memory back");
        std::thread::sleep(Duration::from_secs(7));
        let idle = resident_bytes().saturating_sub(before.0);
        // Of 55 MB; an emulator translates meanwhile, and keeps 2 MiB of that.
        assert!(idle < 4 << 20, "{idle} bytes are kept after the end");
        assert_eq!(threads(), before.1, "the thread has ended");
        take_zeroed(&source, 60);
        assert!(neighbour.is_some());
    });
}

/// What an account leaves serves the next one, and others find no byte of it.
#[test]
fn the_memory_of_an_ended_account_serves_the_next_need() {
    alone("end::the_memory_of_an_ended_account_serves_the_next_need", || {
        let before = resident_bytes();
        for _ in 0..20 {
            come_and_go(200_000);
        }
        let kept = resident_bytes() - before;
        assert!(kept < 40 << 20, "{kept} bytes are kept for a need of 23 MB");
        take_zeroed(&MmapArenas::new(), 40);
    });
}

/// Where no thread may run, and for a small account, the memory goes at once.
#[test]
fn the_memory_of_an_ended_account_goes_at_once_without_a_thread() {
    alone("end::the_memory_of_an_ended_account_goes_at_once_without_a_thread", || {
        let before = resident_bytes();
        come_and_go(9_000);
        MmapArenas::allow_background_thread(false);
        come_and_go(500_000);
        let kept = resident_bytes().saturating_sub(before);
        assert!(kept < 1 << 20, "{kept} bytes are kept without a thread");
    });
}
