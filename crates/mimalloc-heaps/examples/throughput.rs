//! What a thread's own heaps cost beside plain mimalloc, and what a second thread gains, in one run.
//!
//! `cargo run --release -p mimalloc-heaps --example throughput`

use std::hint::black_box;
use std::ptr::NonNull;
use std::sync::Barrier;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use malloc_api::Malloc;
use malloc_trace::{Event, OpKind, generate};
use mimalloc_heaps::{HeapKind, InterpreterHeaps, MiMalloc, ThreadMalloc};

/// The best of eleven rounds, as what disturbs a round only makes it longer.
fn best(mut round: impl FnMut() -> Duration) -> Duration {
    (0..11).map(|_| round()).min().unwrap_or_default()
}

/// Nanoseconds for an allocation of each of several sizes and its free.
fn pair<R>(mut pair: impl FnMut(usize) -> R) -> f64 {
    const ROUNDS: u32 = 1_000_000;
    let time = best(|| {
        let start = Instant::now();
        (0..ROUNDS)
            .for_each(|round| drop(black_box(pair(black_box(16 + 16 * (round as usize % 32))))));
        start.elapsed()
    });
    time.as_secs_f64() * 1e9 / f64::from(ROUNDS)
}

/// A slot in a cache line of its own, so that only the allocator can make threads share lines.
#[repr(align(128))]
#[derive(Default)]
struct Slot(AtomicPtr<u8>);

/// Runs each thread's part of the load at once, racing as the originals do, and returns the million calls a second.
fn race(events: &[Event], threads: u16, malloc: impl Malloc + Copy + Send + Sync) -> f64 {
    let slots =
        events.iter().map(|event| event.op.slot()).max().map_or(0, |last| last as usize + 1);
    let part = |thread| {
        let own = events.iter().filter(move |event| event.thread == thread).map(|event| event.op);
        own.map(|op| (op.slot() as usize, (op.kind() != OpKind::Free).then(|| op.size()))).collect()
    };
    let parts: Vec<Vec<(usize, Option<usize>)>> = (0..threads).map(part).collect();
    let time = best(|| {
        let table: Vec<Slot> = (0..slots).map(|_| Slot::default()).collect();
        let barrier = Barrier::new(parts.len());
        let time = thread::scope(|scope| {
            let (table, barrier) = (&table, &barrier);
            let run = move |part: &[(usize, Option<usize>)]| {
                let start = {
                    barrier.wait();
                    Instant::now()
                };
                for (slot, size) in part {
                    let block = size.map(|size| malloc.malloc(size).expect("memory"));
                    let block = block.map_or(std::ptr::null_mut(), |block| {
                        // SAFETY: a live block of at least one word.
                        unsafe { block.cast::<usize>().write(*slot) };
                        block.as_ptr()
                    });
                    let old = table[*slot].0.swap(block, Ordering::AcqRel);
                    // SAFETY: whoever takes a block out of its slot has it alone.
                    unsafe { malloc.free(NonNull::new(old)) };
                }
                start.elapsed()
            };
            let threads: Vec<_> = parts.iter().map(|part| scope.spawn(move || run(part))).collect();
            threads.into_iter().filter_map(|thread| thread.join().ok()).max().unwrap_or_default()
        });
        // SAFETY: as above.
        table
            .iter()
            .for_each(|slot| unsafe { malloc.free(NonNull::new(slot.0.load(Ordering::Relaxed))) });
        time
    });
    events.len() as f64 / time.as_secs_f64() / 1e6
}

fn main() {
    let interpreter = InterpreterHeaps::new().expect("heaps");
    let heaps = interpreter.attach().expect("heaps");
    // SAFETY: (1) live and (2) not used afterwards, in all three.
    let own = pair(|size| unsafe { heaps.free(heaps.malloc(HeapKind::Object, size)) });
    // SAFETY: as above.
    let current =
        pair(|size| unsafe { ThreadMalloc::OBJECT.free(ThreadMalloc::OBJECT.malloc(size)) });
    // SAFETY: as above.
    let plain = pair(|size| unsafe { MiMalloc.free(MiMalloc.malloc(size)) });
    let c = pair(|size| {
        // SAFETY: no preconditions.
        let block = unsafe { libmimalloc_sys::mi_malloc(size) };
        // SAFETY: a fresh block, not used afterwards.
        unsafe { libmimalloc_sys::mi_free(block) };
    });
    println!(
        "malloc and free, ns: ThreadHeaps {own:.2}, ThreadMalloc {current:.2}, MiMalloc {plain:.2}, mi_malloc {c:.2}"
    );

    type Load = fn(u64, u16, usize) -> Vec<Event>;
    let loads: [(&str, Load); 3] = [
        ("larson", generate::larson),
        ("mstress", generate::mstress),
        ("xmalloc", generate::xmalloc),
    ];
    for (name, load) in loads {
        let (one, two) = (load(1, 1, 1_000_000), load(1, 2, 2_000_000));
        let ours = [race(&one, 1, ThreadMalloc::OBJECT), race(&two, 2, ThreadMalloc::OBJECT)];
        let plain = [race(&one, 1, MiMalloc), race(&two, 2, MiMalloc)];
        println!(
            "{name}, million calls/s with one and two threads: {:.1} and {:.1}, {:.2} times (plain mimalloc {:.1} and {:.1}, {:.2} times)",
            ours[0],
            ours[1],
            ours[1] / ours[0],
            plain[0],
            plain[1],
            plain[1] / plain[0]
        );
    }
}
