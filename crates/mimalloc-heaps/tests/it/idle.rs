//! Memory goes back from a process that makes no call any more.

use std::env;
use std::fs;
use std::thread;
use std::time::Duration;

use malloc_api::testing::{alone, resident_bytes, test_process};
use malloc_api::{Malloc, page_bytes};
use mimalloc_heaps::{MiMalloc, allow_background_thread};

use crate::threads::{Parcel, check, fill};

/// Bytes of a burst.
const BURST: usize = 64 << 20;

/// Threads of this process.
fn threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}

/// Blocks of `size` bytes that come.
fn blocks(size: usize) -> Vec<Parcel> {
    let filled = (0..BURST / size).map(|_| MiMalloc.malloc(size).unwrap());
    filled.inspect(|block| fill(*block, size, 7)).map(Parcel).collect()
}

fn free(blocks: Vec<Parcel>) {
    for Parcel(block) in blocks {
        // SAFETY: (1) live and (2) not used afterwards.
        unsafe { MiMalloc.free(Some(block)) };
    }
}

/// Blocks of `size` bytes come and go, freed by the thread itself or by another one. A few MiB of others stay, and memory goes back while
/// no thread makes a call.
fn goes_back(size: usize, is_freed_elsewhere: bool) {
    let kept: Vec<_> = (0..1_000).map(|_| MiMalloc.malloc(size.min(2_000)).unwrap()).collect();
    kept.iter().for_each(|block| fill(*block, size.min(2_000), 9));
    let before = (resident_bytes(), threads());
    let burst = blocks(size);
    if is_freed_elsewhere {
        thread::spawn(|| free(burst)).join().unwrap();
    } else {
        free(burst);
    }
    let after = resident_bytes() - before.0;
    assert!(after > BURST / 2, "{after} bytes wait");
    assert_eq!(threads(), before.1 + 1, "a thread watches over them");
    thread::sleep(Duration::from_secs(9));
    let idle = resident_bytes().saturating_sub(before.0);
    assert!(idle < 4 << 20, "{idle} bytes are kept by an idle process");
    assert_eq!(threads(), before.1, "the thread has ended");
    for block in kept {
        check(block, size.min(2_000), 9);
        // SAFETY: (1) live and (2) not used afterwards.
        unsafe { MiMalloc.free(Some(block)) };
    }
}

/// Of a block that grows what it had before goes back.
fn a_block_that_grew_leaves_nothing() {
    let before = resident_bytes();
    let mut size = 1 << 20;
    let mut block = MiMalloc.malloc(size).unwrap();
    while size < 48 << 20 {
        fill(block, size, 3);
        size += size / 4;
        // SAFETY: (1) live and (2) not used afterwards.
        block = unsafe { MiMalloc.realloc(Some(block), size) }.unwrap();
    }
    thread::sleep(Duration::from_secs(9));
    let idle = resident_bytes() - before;
    assert!(idle < size + (4 << 20), "{idle} bytes for a block of {size}");
    // SAFETY: (1) live and (2) not used afterwards.
    unsafe { MiMalloc.free(Some(block)) };
}

/// Each in a process of its own, at once, as they do nothing but sleep.
#[test]
fn memory_of_an_idle_process_goes_back() {
    const CASE: &str = "IDLE_CASE";
    const CASES: [(&str, fn()); 4] = [
        ("small blocks", || goes_back(100, false)),
        ("large blocks", || goes_back(1 << 20, false)),
        ("blocks that another thread frees", || goes_back(500, true)),
        ("a block that grows", a_block_that_grew_leaves_nothing),
    ];
    if let Ok(wanted) = env::var(CASE) {
        CASES.iter().filter(|(name, _)| *name == wanted).for_each(|(_, case)| case());
        return;
    }
    let processes = CASES.map(|(name, _)| {
        let mut process = test_process("idle::memory_of_an_idle_process_goes_back");
        (name, process.env(CASE, name).spawn().unwrap())
    });
    for (name, mut process) in processes {
        assert!(process.wait().unwrap().success(), "{name}");
    }
}

/// A program that holds little has no thread.
#[test]
fn a_few_pages_are_worth_no_thread() {
    alone("idle::a_few_pages_are_worth_no_thread", || {
        let before = threads();
        for _ in 0..10 {
            let blocks: Vec<_> = (0..100).map(|_| MiMalloc.malloc(1_000).unwrap()).collect();
            // SAFETY: (1) live and (2) not used afterwards.
            blocks.into_iter().for_each(|block| unsafe { MiMalloc.free(Some(block)) });
        }
        assert_eq!(threads(), before);
    });
}

/// Before a fork the thread ends and what waits goes; parent and child go on.
#[test]
fn a_fork_has_no_second_thread() {
    alone("idle::a_fork_has_no_second_thread", || {
        let before = (resident_bytes(), threads());
        for _ in 0..20 {
            free(blocks(1_000));
            assert_eq!(threads(), before.1 + 1);
            // SAFETY: the child calls what may follow a fork, and ends without unwinding.
            let child = unsafe { libc::fork() };
            if child == 0 {
                // SAFETY: a child that hangs ends by the alarm.
                unsafe { libc::alarm(20) };
                free(blocks(1_000));
                let is_watched = threads() == 2;
                // SAFETY: the child ends here.
                unsafe { libc::_exit(i32::from(!is_watched)) };
            }
            let count = threads();
            let mut status = 0;
            // SAFETY: a child of ours, and a place for its status.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            assert_eq!(status, 0, "the child has a thread of its own");
            assert_eq!(count, before.1, "the parent has one thread");
        }
    });
}

/// A process ends while the thread gives back, with its status.
#[test]
fn an_exit_waits_for_nobody() {
    alone("idle::an_exit_waits_for_nobody", || {
        let children = [0, 1_990, 2_000, 4_000, 4_010].map(|delay| {
            // SAFETY: the child calls what may follow a fork, and ends without unwinding.
            let child = unsafe { libc::fork() };
            if child == 0 {
                // SAFETY: a child that hangs ends by the alarm.
                unsafe { libc::alarm(20) };
                free(blocks(1_000));
                thread::sleep(Duration::from_millis(delay));
                // SAFETY: the child ends here, with its handlers and destructors.
                unsafe { libc::exit(7) };
            }
            child
        });
        for child in children {
            let mut status = 0;
            // SAFETY: a child of ours, and a place for its status.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 7, "{status}");
        }
    });
}

/// Where it is not allowed there is no thread, and later calls give memory back, as in mimalloc itself.
#[test]
fn without_a_thread_calls_give_memory_back() {
    alone("idle::without_a_thread_calls_give_memory_back", || {
        allow_background_thread(false);
        let before = (resident_bytes(), threads());
        free(blocks(1_000));
        assert_eq!(threads(), before.1);
        thread::sleep(Duration::from_secs(5));
        let waiting = resident_bytes() - before.0;
        assert!(waiting > BURST / 2, "{waiting} bytes are still there");
        // A look comes with every ten thousand slow calls.
        for _ in 0..30_000 {
            let block = MiMalloc.malloc(page_bytes() * 40);
            // SAFETY: (1) live and (2) not used afterwards.
            unsafe { MiMalloc.free(block) };
        }
        let idle = resident_bytes().saturating_sub(before.0);
        assert!(idle < 4 << 20, "{idle} bytes are kept");
        assert_eq!(threads(), before.1);
    });
}
