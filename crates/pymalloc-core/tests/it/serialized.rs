//! Pools without a lock, until they are shared: before, in between with blocks and calls under way, and afterwards.

use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use malloc_api::testing::{alone, conformance, forked};
use malloc_api::{LibcMalloc, Malloc};
use pymalloc_core::{MmapArenas, ReleaseLevel, SerializedPymalloc, Stats, can_be_shared};

type Pools = SerializedPymalloc<LibcMalloc, MmapArenas>;

/// Pools that live for ever.
macro_rules! pools {
    () => {{
        // SAFETY: 1: each test makes its calls one at a time, or under a lock, until it shares the pools.
        static POOLS: Pools = unsafe { Pools::new(LibcMalloc) };
        assert!(can_be_shared());
        &POOLS
    }};
}

/// A size that is none of a round number of grains: zero bytes, small, of two units and large ones.
fn size(index: usize) -> usize {
    index * 7 % 10_000
}

fn malloc_many(pools: &Pools, count: usize) -> Vec<NonNull<u8>> {
    let block = |index| {
        let block = pools.malloc(size(index)).expect("memory");
        // SAFETY: a block of this size.
        unsafe { block.write_bytes(index as u8, size(index)) };
        block
    };
    (0..count).map(block).collect()
}

/// Frees what [`malloc_many`] has made, each of which holds what it was filled with.
fn free_many(pools: &Pools, blocks: Vec<NonNull<u8>>) {
    for (index, block) in blocks.into_iter().enumerate() {
        // SAFETY: a live block of this size, filled.
        let bytes = unsafe { std::slice::from_raw_parts(block.as_ptr(), size(index)) };
        assert!(bytes.iter().all(|byte| *byte == index as u8), "somebody else's block");
        // SAFETY: 1: live; 2: not used again.
        unsafe { pools.free(Some(block)) };
    }
}

/// Forks as a program does whose handlers hold the pools; whether the child has done its `work`.
///
/// # Safety
///
/// 1. That of [`forked`].
unsafe fn child_of(pools: &Pools, work: impl FnOnce()) -> bool {
    pools.lock_for_fork();
    let work = || {
        // SAFETY: 1: locked above, by the thread that forked.
        unsafe { pools.unlock_after_fork() };
        work();
    };
    // SAFETY: 1: by duty 1.
    let ended = unsafe { forked(work) }.1.success();
    // SAFETY: 1: locked above.
    unsafe { pools.unlock_after_fork() };
    ended
}

/// Asserts that nothing is live, and that all memory can go back.
fn assert_empty(pools: &Pools) {
    pools.check_invariants();
    assert_eq!(pools.allocated_blocks(), 0);
    pools.release(ReleaseLevel::Arenas);
    assert_eq!(pools.stats().arenas_current, 0);
}

/// Calls with marks and calls without serve the same blocks.
#[test]
fn unshared_pools_conform_and_close_what_is_empty() {
    let pools = pools!();
    // SAFETY: 1: they are never shared.
    let unshared = unsafe { pools.unshared() };
    conformance(unshared);
    pools.check_invariants();
    for index in 0..20_000 {
        let by_marked = unshared.malloc(size(index)).expect("memory");
        let by_unshared = pools.malloc(size(index)).expect("memory");
        // SAFETY: 1: live; 2: not used again.
        unsafe { pools.free(Some(by_marked)) };
        // SAFETY: 1: live; 2: not used again.
        unsafe { unshared.free(Some(by_unshared)) };
    }
    let blocks: Vec<_> = (0..20_000).map(|index| unshared.malloc(size(index)).unwrap()).collect();
    assert!(pools.stats().arenas_current > 50, "some 80 MB");
    for block in blocks {
        // SAFETY: 1: live; 2: not used again.
        unsafe { unshared.free(Some(block)) };
    }
    pools.check_invariants();
    assert_eq!(pools.allocated_blocks(), 0);
    assert!(pools.stats().arenas_current < 15, "a floor of 6 MiB, and pools that are kept");
}

#[test]
fn serialized_pools_conform_before_they_are_shared_and_after() {
    let pools = pools!();
    conformance(pools);
    assert_empty(pools);
    assert!(!pools.is_shared());
    pools.share();
    assert!(pools.is_shared());
    conformance(pools);
    assert_empty(pools);
    pools.share();
    assert!(pools.is_shared(), "for good");
}

#[test]
fn blocks_outlive_the_change() {
    let pools = pools!();
    let blocks = malloc_many(pools, 20_000);
    let kept = pools.malloc(100).expect("memory");
    pools.share();
    assert_eq!(pools.allocated_blocks(), 20_001);
    pools.check_invariants();
    // SAFETY: a live block, of which only the answer is used.
    let moved = unsafe { pools.realloc(Some(kept), 3000) }.expect("memory");
    assert!(pools.owns(moved.as_ptr()));
    thread::scope(|scope| {
        let others: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| (0..20).for_each(|_| free_many(pools, malloc_many(pools, 2000))))
            })
            .collect();
        free_many(pools, blocks);
        // Whole ends of threads, in which their magazines go back.
        others.into_iter().for_each(|other| other.join().expect("no panic"));
    });
    // SAFETY: live, and not used again.
    unsafe { pools.free(Some(moved)) };
    assert_empty(pools);
}

/// Threads take turns by a lock of theirs, and a thread that has not got it shares the pools and goes on at once.
#[test]
fn a_call_under_way_is_over_when_the_pools_are_shared() {
    for _ in 0..60 {
        // SAFETY: 1: the calls before `share` returns are made under `turn`.
        let pools: &'static Pools = Box::leak(Box::new(unsafe { Pools::new(LibcMalloc) }));
        let (turn, stop, calls) = (Mutex::new(()), AtomicBool::new(false), AtomicUsize::new(0));
        thread::scope(|scope| {
            let caller = || {
                while !stop.load(Ordering::Relaxed) {
                    let _turn = turn.lock().expect("no panic");
                    free_many(pools, malloc_many(pools, 60));
                    calls.fetch_add(1, Ordering::Relaxed);
                }
            };
            let callers = [scope.spawn(caller), scope.spawn(caller)];
            while calls.load(Ordering::Relaxed) < 3 {
                thread::yield_now();
            }
            pools.share();
            for _ in 0..30 {
                free_many(pools, malloc_many(pools, 100));
            }
            stop.store(true, Ordering::Relaxed);
            callers.into_iter().for_each(|caller| caller.join().expect("no panic"));
        });
        assert_empty(pools);
    }
}

/// A child of pools that are not shared, one of shared ones, and one that shares them itself allocate.
#[test]
fn a_child_allocates_and_shares() {
    let name = "serialized::a_child_allocates_and_shares";
    alone(name, || {
        let pools = pools!();
        let blocks = malloc_many(pools, 1000);
        let child_ends = |share: bool| {
            // SAFETY: 1: the child uses these pools and the C library.
            unsafe {
                child_of(pools, || {
                    if share {
                        pools.share();
                    }
                    free_many(pools, malloc_many(pools, 1000));
                    pools.check_invariants();
                })
            }
        };
        assert!(child_ends(false));
        assert!(child_ends(true));
        assert!(!pools.is_shared(), "the child's alone");
        pools.share();
        assert!(child_ends(false));
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    free_many(pools, malloc_many(pools, 300));
                }
            });
            thread::sleep(Duration::from_millis(5));
            let ended = (0..20).all(|_| child_ends(true));
            stop.store(true, Ordering::Relaxed);
            assert!(ended, "a child waits for a thread that only its parent has");
        });
        free_many(pools, blocks);
        assert_empty(pools);
    });
}

static IS_INSIDE: AtomicBool = AtomicBool::new(false);
static GOES_ON: AtomicBool = AtomicBool::new(false);

/// Keeps whoever needs an arena inside of its call until it may go on.
fn wait_inside(_: &Stats) {
    IS_INSIDE.store(true, Ordering::Relaxed);
    while !GOES_ON.load(Ordering::Relaxed) {
        thread::yield_now();
    }
}

/// A thread that forks without the callers' lock may leave a child a call that never ends.
#[test]
fn a_child_does_not_wait_for_a_call_of_a_lost_thread() {
    let name = "serialized::a_child_does_not_wait_for_a_call_of_a_lost_thread";
    alone(name, || {
        let pools = pools!();
        // SAFETY: 1, 2: it looks at two words.
        unsafe { pools.set_new_arena_hook(Some(wait_inside)) };
        thread::scope(|scope| {
            scope.spawn(|| {
                // SAFETY: 1: live; 2: not used again.
                unsafe { pools.free(pools.malloc(10)) };
            });
            while !IS_INSIDE.load(Ordering::Relaxed) {
                thread::yield_now();
            }
            // SAFETY: 1: the child only shares the pools.
            let ended = unsafe { child_of(pools, || pools.share()) };
            GOES_ON.store(true, Ordering::Relaxed);
            assert!(ended);
        });
        assert_empty(pools);
    });
}
