//! What a second thread gains, under larson-, mstress- and xmalloc-like loads: `cargo bench -p mimalloc-heaps --bench scaling`.
//!
//! larson and mstress run as one thread and as two. xmalloc runs as two threads on one processor and on two, because one thread
//! cannot free another's blocks. Each thread works on its own blocks; blocks for another thread go over in batches, and whoever
//! has nothing to free yet goes on. A round ends when a thread is through: what both did until then counts. Rates are the best of
//! many short rounds, by the clock and by the processor's time, which a busy machine disturbs less. Two rows are no allocators: `unshared`, lists without any synchronisation, where only the blocks' own
//! cache lines travel; and `null`, which does nothing: the harness alone.

mod channel;
mod null;
mod program;
mod unshared;
mod worker;

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use malloc_api::{LibcMalloc, Malloc};
use malloc_trace::generate;
use mimalloc_heaps::{MiMalloc, ThreadMalloc};

use channel::Channel;
use null::Null;
use program::{Load, Touch};
use unshared::Unshared;
use worker::Worker;

/// Rounds, the first of which warms up.
const ROUNDS: usize = 100;
/// Calls of each of two threads in a round.
const CALLS: usize = 400_000;

/// Million calls a second.
#[derive(Clone, Copy, Default)]
struct Rate {
    clock: f64,
    processor: f64,
}

/// What a thread saw of a round.
#[derive(Clone, Copy)]
struct Lap {
    start: Instant,
    end: Instant,
    processor: Duration,
    calls: usize,
}

/// Processor time of the calling thread.
fn processor_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a clock that every thread has, and a place for the time.
    let code = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(code, 0, "no processor time for threads");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Keeps the calling thread on one processor, or two threads may take turns on the same one for a whole round.
fn pin(processor: usize) {
    // SAFETY: an integer array, for which zero is the empty set.
    let mut set: libc::cpu_set_t = unsafe { core::mem::zeroed() };
    // SAFETY: a set of its own; numbers beyond its end are ignored.
    unsafe { libc::CPU_SET(processor, &mut set) };
    // SAFETY: the calling thread, and a set of the size that is named. Where it fails, the system chooses.
    unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
}

/// The best of all rounds, with the threads on the first `processors`.
fn race(load: &Load, processors: usize, malloc: impl Malloc + Copy + Send + Sync) -> Rate {
    let threads = load.threads.len();
    let channels: Vec<Vec<Channel>> =
        (0..threads).map(|_| (0..threads).map(|_| Channel::default()).collect()).collect();
    let (channels, barrier, is_over) = (&channels, &Barrier::new(threads), &AtomicBool::new(false));
    let laps: Vec<Vec<Lap>> = thread::scope(|scope| {
        let start = |me: usize| {
            scope.spawn(move || {
                pin(me % processors);
                let mut worker = Worker::new(malloc, load, me, channels);
                let lap = |_| {
                    barrier.wait();
                    let (start, before) = (Instant::now(), processor_time());
                    let calls = worker.run(&load.threads[me], is_over);
                    let (end, processor) = (Instant::now(), processor_time() - before);
                    barrier.wait();
                    // Relaxed: the barriers order this before the next lap.
                    is_over.store(false, Ordering::Relaxed);
                    worker.clear();
                    Lap { start, end, processor, calls }
                };
                (0..ROUNDS).map(lap).collect()
            })
        };
        let handles: Vec<_> = (0..threads).map(start).collect();
        handles.into_iter().map(|handle| handle.join().expect("a thread's laps")).collect()
    });
    let mut best = Rate::default();
    for round in 1..ROUNDS {
        let lap = |thread: &Vec<Lap>| thread[round];
        let start = laps.iter().map(|thread| lap(thread).start).min();
        let end = laps.iter().map(|thread| lap(thread).end).max();
        let clock = start.zip(end).map_or(Duration::MAX, |(start, end)| end - start);
        let calls: usize = laps.iter().map(|thread| lap(thread).calls).sum();
        best.clock = best.clock.max(calls as f64 / clock.as_secs_f64() / 1e6);
        let rate = |lap: Lap| lap.calls as f64 / lap.processor.as_secs_f64() / 1e6;
        let rates: f64 = laps.iter().map(|thread| rate(lap(thread))).sum();
        best.processor = best.processor.max(rates * processors as f64 / threads as f64);
    }
    best
}

fn main() {
    let loads = [
        ("larson", 1, generate::larson as fn(u64, u16, usize) -> _, Load::new as fn(&_, u16) -> _),
        ("mstress", 1, generate::mstress, |events, threads| {
            Load::new(events, threads).touching(Touch::All)
        }),
        ("xmalloc", 2, generate::xmalloc, |events, threads| {
            Load::new(events, threads).in_turns(4096).touching(Touch::Start(128))
        }),
    ];
    println!(
        "million calls/s on one processor, on two, and the gain; by the clock | by processor time"
    );
    for (name, fewest, generate, load_of) in loads {
        let load = |threads| load_of(&generate(1, threads, usize::from(threads) * CALLS), threads);
        let (one, two) = ((&load(fewest), 1), (&load(2), 2));
        let row = |allocator: &str, [one, two]: [Rate; 2]| {
            let gain = |one: f64, two: f64| format!("{one:6.1} {two:6.1} {:5.2}x", two / one);
            let (clock, processor) =
                (gain(one.clock, two.clock), gain(one.processor, two.processor));
            println!("{name:8} {allocator:12} {clock} | {processor}");
        };
        row(
            "ThreadMalloc",
            [one, two].map(|(load, processors)| race(load, processors, ThreadMalloc::OBJECT)),
        );
        row("mi_malloc", [one, two].map(|(load, processors)| race(load, processors, MiMalloc)));
        row("unshared", [one, two].map(|(load, processors)| race(load, processors, Unshared)));
        row("null", [one, two].map(|(load, processors)| race(load, processors, Null)));
        row("libc", [one, two].map(|(load, processors)| race(load, processors, LibcMalloc)));
    }
}
