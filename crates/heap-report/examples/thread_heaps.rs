//! Draws the heaps of an interpreter: those of this thread, and what a thread that has exited left in its own.

use std::thread;

use heap_report::{Snapshot, Text};
use mimalloc_heaps::{BarrierWorld, HeapError, HeapKind, InterpreterHeaps};

fn main() -> Result<(), HeapError> {
    let interpreter = InterpreterHeaps::new()?;
    let world = BarrierWorld::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            // SAFETY: (1) the heaps are used below only, between checkpoints, and (2) dropped before `_thread`.
            let _thread = unsafe { world.join() };
            let heaps = interpreter.attach().expect("heaps for the thread");
            (0..1_000).for_each(|_| assert!(heaps.malloc(HeapKind::Gc, 64).is_some()));
        });
    });

    // SAFETY: (1) the heaps are used below only, between checkpoints, and (2) dropped before `thread`.
    let thread = unsafe { world.join() };
    let heaps = interpreter.attach()?;
    let buffer = heaps.malloc(HeapKind::Mem, 100_000);
    let snapshot = Snapshot::of_mimalloc("two threads", &interpreter, &thread);
    assert_eq!(snapshot.totals().blocks, 1_001);
    print!("{}", Text(&snapshot));
    // SAFETY: live, and not used again.
    unsafe { heaps.free(buffer) };
    Ok(())
}
