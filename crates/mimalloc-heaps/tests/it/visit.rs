//! Visits count every block, whoever owns it.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::panic::{self, AssertUnwindSafe};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use mimalloc_heaps::{BarrierWorld, Block, HeapKind, InterpreterHeaps, World};

use crate::threads::{Parcel, check, fill};

/// The world of a test whose other threads do nothing at the moment.
pub(crate) struct QuietWorld;

// SAFETY: 1-3: used only while the test's one thread exists, or its others have been joined.
unsafe impl World for QuietWorld {
    fn stop(&self) {}
    unsafe fn start(&self) {}
}

pub(crate) fn quiet_world() -> QuietWorld {
    QuietWorld
}

/// [`InterpreterHeaps::visit_blocks`], with visitors of these tests: none of them uses a heap.
pub(crate) fn visit_blocks<W: World + ?Sized>(
    interpreter: &InterpreterHeaps,
    world: &W,
    kind: HeapKind,
    visitor: impl FnMut(Block) -> ControlFlow<()>,
) -> ControlFlow<()> {
    // SAFETY: (1) as said above; the global allocator is the system's.
    unsafe { interpreter.visit_blocks(world, kind, visitor) }
}

/// Which heap of `interpreter` the block at this address lives in.
pub(crate) fn kind_of(interpreter: &InterpreterHeaps, block: NonNull<u8>) -> Option<HeapKind> {
    HeapKind::ALL.into_iter().find(|&kind| {
        let visited = visit_blocks(interpreter, &quiet_world(), kind, |visited| {
            let offset = block.addr().get().wrapping_sub(visited.start.addr().get());
            if offset < visited.bytes { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        visited.is_break()
    })
}

/// Counts by walking the blocks, and checks that walking the areas gives the same.
pub(crate) fn blocks_of(interpreter: &InterpreterHeaps, kind: HeapKind) -> usize {
    let mut starts = BTreeSet::new();
    let flow = visit_blocks(interpreter, &quiet_world(), kind, |block| {
        assert_eq!(block.kind, kind);
        assert!(starts.insert(block.start), "{:?} was visited twice", block.start);
        ControlFlow::Continue(())
    });
    assert!(flow.is_continue());
    assert_eq!(interpreter.count_blocks(&quiet_world(), kind), starts.len());
    let areas = interpreter.areas(&quiet_world());
    let in_areas = areas.iter().filter(|area| area.kind == kind).map(|area| area.used_blocks);
    assert_eq!(in_areas.sum::<usize>(), starts.len());
    starts.len()
}

/// Every size class, and sizes that have a page each.
const SIZES: [usize; 14] =
    [1, 16, 17, 48, 100, 512, 1000, 4000, 9000, 20_000, 80_000, 200_000, 600_000, 3_000_000];

#[test]
fn every_block_of_a_live_thread_is_visited_with_its_address() {
    let interpreter = InterpreterHeaps::new().unwrap();
    let heaps = interpreter.attach().unwrap();
    let mut expected = BTreeSet::new();
    for count in [1, 3, 200] {
        for size in SIZES.into_iter().filter(|size| size * count < 10_000_000) {
            for _ in 0..count {
                expected.insert(heaps.malloc(HeapKind::Gc, size).unwrap());
            }
        }
    }
    let noise = heaps.malloc(HeapKind::Mem, 10).unwrap();
    let mut seen = BTreeSet::new();
    let flow = visit_blocks(&interpreter, &quiet_world(), HeapKind::Gc, |block| {
        seen.insert(block.start);
        ControlFlow::Continue(())
    });
    assert!(flow.is_continue());
    assert_eq!(seen, expected);
    assert_eq!(blocks_of(&interpreter, HeapKind::Mem), 1);
    for block in expected.into_iter().chain([noise]) {
        // SAFETY: (1) live and (2) not used afterwards.
        unsafe { heaps.free(Some(block)) };
    }
    assert_eq!(blocks_of(&interpreter, HeapKind::Gc), 0);
}

/// mimalloc takes such blocks straight from the system, outside of its arenas.
#[test]
fn blocks_from_outside_the_arenas_are_visited_owned_and_abandoned() {
    let interpreter = InterpreterHeaps::new().unwrap();
    let world = quiet_world();
    let Parcel(block) = thread::scope(|scope| {
        let leaver = scope.spawn(|| {
            let heaps = interpreter.attach().unwrap();
            let block = heaps.malloc_aligned(HeapKind::Object, 100, 1 << 20).unwrap();
            let huge = heaps.malloc(HeapKind::Object, 3 << 30).expect("address space");
            assert_eq!(blocks_of(&interpreter, HeapKind::Object), 2);
            // SAFETY: (1) live and (2) not used afterwards.
            unsafe { heaps.free(Some(huge)) };
            assert_eq!(blocks_of(&interpreter, HeapKind::Object), 1);
            Parcel(block)
        });
        leaver.join().unwrap()
    });
    assert_eq!(blocks_of(&interpreter, HeapKind::Object), 1);
    let heaps = interpreter.attach().unwrap();
    assert_eq!(kind_of(&interpreter, block), Some(HeapKind::Object));
    // SAFETY: (1) live and (2) not used afterwards.
    unsafe { heaps.free(Some(block)) };
    assert_eq!(interpreter.statistics(&world).total().blocks, 0);
}

#[test]
fn a_visitor_can_break_off_or_panic_and_the_world_starts_again() {
    let interpreter = InterpreterHeaps::new().unwrap();
    let world = BarrierWorld::new();
    // SAFETY: (1) the heaps are used between checkpoints only; (2) nothing is read lock-free.
    let thread = unsafe { world.join() };
    let heaps = interpreter.attach().unwrap();
    let blocks: Vec<_> = (0..10).map(|_| heaps.malloc(HeapKind::Gc, 64).unwrap()).collect();
    let mut calls = 0;
    let flow = visit_blocks(&interpreter, &thread, HeapKind::Gc, |_| {
        calls += 1;
        if calls == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!((flow, calls), (ControlFlow::Break(()), 3));
    let unwound = panic::catch_unwind(AssertUnwindSafe(|| {
        visit_blocks(&interpreter, &thread, HeapKind::Gc, |_| panic!("the visitor's own"))
    }));
    assert!(unwound.is_err());
    assert_eq!(interpreter.count_blocks(&thread, HeapKind::Gc), 10);
    blocks.into_iter().for_each(|block| {
        // SAFETY: (1) live and (2) not used afterwards.
        unsafe { heaps.free(Some(block)) };
    });
}

#[test]
fn visits_beside_running_threads_are_exact() {
    const KEPT: usize = 500;
    let interpreter = InterpreterHeaps::new().unwrap();
    let world = BarrierWorld::new();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..3)
            .map(|seed| {
                let (interpreter, world, done) = (&interpreter, &world, &done);
                scope.spawn(move || {
                    // SAFETY: (1) the heaps are used between checkpoints only; (2) nothing is read lock-free.
                    let thread = unsafe { world.join() };
                    let heaps = interpreter.attach().unwrap();
                    let mut random = fastrand::Rng::with_seed(seed);
                    let mut blocks: Vec<NonNull<u8>> = Vec::new();
                    while !done.load(Ordering::Relaxed) {
                        // At each checkpoint this thread has `KEPT` blocks.
                        while blocks.len() < KEPT {
                            let size = SIZES[random.usize(..10)];
                            blocks.push(heaps.malloc(HeapKind::Gc, size).unwrap());
                        }
                        thread.checkpoint();
                        for _ in 0..random.usize(..KEPT) {
                            let block = blocks.swap_remove(random.usize(..blocks.len()));
                            // SAFETY: (1) live and (2) not used afterwards.
                            unsafe { heaps.free(Some(block)) };
                        }
                    }
                    while blocks.len() < KEPT {
                        blocks.push(heaps.malloc(HeapKind::Gc, 32).unwrap());
                    }
                    blocks.into_iter().map(Parcel).collect::<Vec<_>>()
                })
            })
            .collect();
        // SAFETY: (1) as above; (2) nothing is read lock-free.
        let thread = unsafe { world.join() };
        for _ in 0..50 {
            // Threads that have not allocated yet count 0, later ones `KEPT` each.
            assert_eq!(interpreter.count_blocks(&thread, HeapKind::Gc) % KEPT, 0);
            thread::yield_now();
        }
        done.store(true, Ordering::Relaxed);
        let left: Vec<Parcel> = thread
            .blocking(|| workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect());
        assert_eq!(interpreter.count_blocks(&thread, HeapKind::Gc), 3 * KEPT);
        let heaps = interpreter.attach().unwrap();
        for Parcel(block) in left {
            // SAFETY: (1) live and (2) not used afterwards.
            unsafe { heaps.free(Some(block)) };
        }
        assert_eq!(interpreter.count_blocks(&thread, HeapKind::Gc), 0);
    });
}

/// A thread that ends while another visits waits for the visit, which sees all of its blocks; they outlive it.
#[test]
fn a_thread_that_exits_during_a_visit_leaves_its_blocks() {
    const BLOCKS: usize = 300;
    let interpreter = InterpreterHeaps::new().unwrap();
    let world = BarrierWorld::new();
    let [is_ready, may_go, is_going, is_gone] = [const { AtomicBool::new(false) }; 4];
    let wait_for = |flag: &AtomicBool| {
        while !flag.load(Ordering::Relaxed) {
            thread::yield_now();
        }
    };
    thread::scope(|scope| {
        let leaver = scope.spawn(|| {
            // SAFETY: (1) the heaps are used between checkpoints only; (2) nothing is read lock-free.
            let thread = unsafe { world.join() };
            let heaps = interpreter.attach().unwrap();
            let blocks: Vec<_> = (0..BLOCKS)
                .map(|_| Parcel(heaps.malloc(HeapKind::Object, 48).unwrap()))
                .inspect(|block| fill(block.0, 48, 9))
                .collect();
            is_ready.store(true, Ordering::Relaxed);
            thread.blocking(|| {
                wait_for(&may_go);
                is_going.store(true, Ordering::Relaxed);
            });
            drop(heaps);
            is_gone.store(true, Ordering::Relaxed);
            blocks
        });
        // SAFETY: (1) as above; (2) nothing is read lock-free.
        let thread = unsafe { world.join() };
        thread.blocking(|| wait_for(&is_ready));
        let mut seen = 0;
        let flow = visit_blocks(&interpreter, &thread, HeapKind::Object, |_| {
            seen += 1;
            may_go.store(true, Ordering::Relaxed);
            wait_for(&is_going);
            thread::yield_now();
            assert!(!is_gone.load(Ordering::Relaxed), "it left during the visit");
            ControlFlow::Continue(())
        });
        assert_eq!((flow, seen), (ControlFlow::Continue(()), BLOCKS));
        let left = thread.blocking(|| leaver.join().unwrap());
        assert_eq!(interpreter.count_blocks(&thread, HeapKind::Object), BLOCKS);
        let heaps = interpreter.attach().unwrap();
        for Parcel(block) in left {
            check(block, 48, 9);
            // SAFETY: (1) live and (2) not used afterwards.
            unsafe { heaps.free(Some(block)) };
        }
        assert_eq!(interpreter.count_blocks(&thread, HeapKind::Object), 0);
    });
}

/// A thread counts once among those that run, however its calls nest.
#[test]
fn a_world_waits_for_a_thread_that_has_blocked_twice_at_once() {
    let world = BarrierWorld::new();
    let (blocked, runs) = (AtomicBool::new(false), AtomicBool::new(true));
    thread::scope(|scope| {
        scope.spawn(|| {
            // SAFETY: (1), (2) this thread uses no heaps.
            let thread = unsafe { world.join() };
            thread.blocking(|| thread.blocking(|| thread.checkpoint()));
            blocked.store(true, Ordering::Relaxed);
            thread::sleep(std::time::Duration::from_millis(50));
            runs.store(false, Ordering::Relaxed);
        });
        // SAFETY: (1), (2) this thread uses no heaps.
        let stopper = unsafe { world.join() };
        while !blocked.load(Ordering::Relaxed) {
            stopper.checkpoint();
        }
        stopper.blocking(|| {
            stopper.stop();
            assert!(!runs.load(Ordering::Relaxed), "stopped while a thread was running");
            // SAFETY: (1) stopped above.
            unsafe { stopper.start() };
        });
    });
}

/// A visitor stands in a stopped world, and cannot leave it.
#[test]
fn a_visitor_passes_checkpoints() {
    let interpreter = InterpreterHeaps::new().unwrap();
    let world = BarrierWorld::new();
    // SAFETY: (1) the heaps are used between checkpoints only; (2) nothing is read lock-free.
    let thread = unsafe { world.join() };
    let heaps = interpreter.attach().unwrap();
    assert!(heaps.malloc(HeapKind::Gc, 64).is_some());
    let mut visited = 0;
    let _all = visit_blocks(&interpreter, &thread, HeapKind::Gc, |_| {
        thread.checkpoint();
        visited += thread.blocking(|| 1);
        ControlFlow::Continue(())
    });
    assert_eq!(visited, 1);
}
