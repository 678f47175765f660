//! What a thread's own heaps cost beside plain mimalloc, and what a second thread gains, in one run.
//!
//! `cargo run --release -p mimalloc-heaps --example throughput`

use std::hint::black_box;
use std::time::{Duration, Instant};

use malloc_api::Malloc;
use malloc_trace::{Event, ThreadedReplay, generate};
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
        (0..ROUNDS).for_each(|round| drop(black_box(pair(black_box(16 + 16 * (round as usize % 32))))));
        start.elapsed()
    });
    time.as_secs_f64() * 1e9 / f64::from(ROUNDS)
}

fn main() {
    let interpreter = InterpreterHeaps::new().expect("heaps");
    let heaps = interpreter.attach().expect("heaps");
    // SAFETY: (1) live and (2) not used afterwards, in all three.
    let own = pair(|size| unsafe { heaps.free(heaps.malloc(HeapKind::Object, size)) });
    // SAFETY: as above.
    let current = pair(|size| unsafe { ThreadMalloc::OBJECT.free(ThreadMalloc::OBJECT.malloc(size)) });
    // SAFETY: as above.
    let plain = pair(|size| unsafe { MiMalloc.free(MiMalloc.malloc(size)) });
    // SAFETY: a fresh block, not used afterwards.
    let c = pair(|size| unsafe { libmimalloc_sys::mi_free(libmimalloc_sys::mi_malloc(size)) });
    println!("malloc and free, ns: ThreadHeaps {own:.2}, ThreadMalloc {current:.2}, MiMalloc {plain:.2}, mi_malloc {c:.2}");

    type Load = fn(u64, u16, usize) -> Vec<Event>;
    let loads: [(&str, Load); 3] =
        [("larson", generate::larson), ("mstress", generate::mstress), ("xmalloc", generate::xmalloc)];
    for (name, load) in loads {
        let throughput = |threads: u16| {
            let replay = ThreadedReplay::new(&load(1, threads, 2_000_000 * usize::from(threads)));
            let pass = || replay.pass([&ThreadMalloc::OBJECT; 3]).expect("memory");
            replay.calls() as f64 / best(pass).as_secs_f64() / 1e6
        };
        let (one, two) = (throughput(1), throughput(2));
        println!("{name}: {one:.1} million calls/s with one thread, {two:.1} with two, {:.2} times", two / one);
    }
}
