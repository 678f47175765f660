//! Snapshots of real mimalloc heaps; where areas lie differs from run to run, so they are counted and not drawn.

use std::thread;

use heap_report::{Snapshot, Svg, Text};
use mimalloc_heaps::{BarrierWorld, HeapKind, InterpreterHeaps};

const SIZES: [usize; 6] = [16, 100, 1_000, 20_000, 300_000, 9_000_000];

#[test]
fn a_snapshot_counts_every_heap_of_live_and_of_exited_threads() {
    let interpreter = InterpreterHeaps::new().unwrap();
    let world = BarrierWorld::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            // SAFETY: (1) the heaps are used below only, between checkpoints, and (2) dropped before `_thread`.
            let _thread = unsafe { world.join() };
            let heaps = interpreter.attach().unwrap();
            (0..500).for_each(|_| assert!(heaps.malloc(HeapKind::Gc, 64).is_some()));
        });
    });
    // SAFETY: (1) the heaps are used below only, between checkpoints, and (2) dropped before `thread`.
    let thread = unsafe { world.join() };
    let heaps = interpreter.attach().unwrap();
    let blocks: Vec<_> =
        SIZES.map(|size| HeapKind::ALL.map(|kind| heaps.malloc(kind, size).unwrap())).concat();

    let snapshot = Snapshot::of_mimalloc("threads", &interpreter, &thread);
    let statistics = interpreter.statistics(&thread);
    let areas: usize = statistics.heaps.iter().map(|heap| heap.usage.areas).sum();
    let bytes: usize = statistics.heaps.iter().map(|heap| heap.usage.block_bytes).sum();
    let totals = snapshot.totals();
    assert_eq!(totals.blocks, 500 + 4 * SIZES.len());
    assert_eq!(totals.pools - totals.unused_pools, areas);
    assert_eq!(totals.block_bytes, bytes);
    let mut end = 0;
    for arena in &snapshot.arenas {
        assert!(end <= arena.address, "rows are in the order of their addresses");
        end = arena.address + arena.pools.iter().map(|pool| pool.bytes).sum::<usize>();
        assert_eq!((arena.address % (4 << 20), end % (4 << 20)), (0, 0), "whole windows");
    }
    assert!(Text(&snapshot).to_string().starts_with("threads: "));
    assert!(Svg(&snapshot).to_string().contains("1 of 1 blocks"));
    // SAFETY: live, and not used again.
    blocks.into_iter().for_each(|block| unsafe { heaps.free(Some(block)) });
}

#[test]
fn heaps_without_blocks_are_an_empty_snapshot() {
    let interpreter = InterpreterHeaps::new().unwrap();
    let world = BarrierWorld::new();
    // SAFETY: (1) nothing is used, and (2) there are no heaps.
    let thread = unsafe { world.join() };
    assert_eq!(Snapshot::of_mimalloc("none", &interpreter, &thread).arenas, []);
}
