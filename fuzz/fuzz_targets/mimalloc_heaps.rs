//! A program of operations whose pieces run on threads that come and go: blocks outlive their owner and are freed by others.
#![no_main]

use libfuzzer_sys::fuzz_target;
use malloc_api::Malloc;
use malloc_trace::{ShadowModel, generate::ops_from_bytes};
use mimalloc_heaps::{HeapKind, InterpreterHeaps, ThreadMalloc};

/// Operations that one thread runs before it exits.
const PIECE: usize = 48;

/// A model that moves to the thread that runs the next piece.
struct Moved<'a>(ShadowModel<'a, dyn Malloc>);

// SAFETY: 1: one thread at a time uses it, each joined before the next starts.
unsafe impl Send for Moved<'_> {}

fuzz_target!(|bytes: &[u8]| {
    let kinds = [HeapKind::Mem, HeapKind::Object, HeapKind::Gc].map(ThreadMalloc::new);
    let interpreter = InterpreterHeaps::new().expect("heaps for a new interpreter");
    let allocators: [&dyn Malloc; 3] = [&kinds[0], &kinds[1], &kinds[2]];
    let mut model = Moved(ShadowModel::new(allocators));
    for piece in ops_from_bytes(bytes, 64, 1 << 17).chunks(PIECE) {
        model = std::thread::scope(|scope| {
            let (mut moved, interpreter) = (model, &interpreter);
            let run = move || {
                let moved_whole = &mut moved;
                let heaps = interpreter.attach().expect("heaps for a new thread");
                heaps.enter(|| {
                    for &op in piece {
                        moved_whole.0.step(op).unwrap_or_else(|fault| panic!("{op}: {fault}"));
                    }
                });
                drop(heaps);
                moved
            };
            scope.spawn(run).join().expect("a piece that ran to its end")
        });
    }
    let heaps = interpreter.attach().expect("heaps for the last thread");
    heaps.enter(|| model.0.free_all().unwrap_or_else(|fault| panic!("at the end: {fault}")));
});
