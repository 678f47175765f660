//! What a second thread gains, under larson-, mstress- and xmalloc-like loads: `cargo bench -p mimalloc-heaps --bench scaling`.
//!
//! larson and mstress run as one thread and as two. xmalloc runs as two threads on one processor and on two, because one thread
//! cannot free another's blocks. Each thread works on its own blocks; blocks for another thread go over in batches, and whoever
//! has nothing to free yet goes on. A round ends when a thread is through: what both did until then counts. Rounds on one
//! processor and on two alternate, so that both meet the same moods of the machine. Two rows are no allocators: `unshared`,
//! lists without any synchronisation, where only the blocks' own cache lines travel; and `null`, which does nothing: the harness
//! alone. Each row names the distance of the processors, which a virtual machine's host may change at any time.

mod channel;
mod distance;
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

/// What a thread saw of a round.
#[derive(Clone, Copy)]
struct Lap {
    start: Instant,
    end: Instant,
    calls: usize,
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

/// The rates of two loads, round by round: the threads of the first share one processor, those of the second have one each.
fn race(loads: [&Load; 2], malloc: impl Malloc + Copy + Send + Sync) -> [Vec<f64>; 2] {
    let channels = loads.map(|load| channels(load.threads.len()));
    let (barrier, is_over) =
        (&Barrier::new(loads.map(|load| load.threads.len()).iter().sum()), &AtomicBool::new(false));
    let laps = thread::scope(|scope| {
        let teams = [0, 1].map(|team| {
            let (load, channels) = (loads[team], &channels[team]);
            let start = |me: usize| {
                scope.spawn(move || {
                    pin(me * team);
                    let mut worker = Worker::new(malloc, load, me, channels);
                    let mut laps = Vec::new();
                    for turn in 0..2 * ROUNDS {
                        barrier.wait();
                        if turn % 2 == team {
                            let start = Instant::now();
                            let calls = worker.run(&load.threads[me], is_over);
                            laps.push(Lap { start, end: Instant::now(), calls });
                        }
                        barrier.wait();
                        // Relaxed: the barriers order this before the next lap.
                        is_over.store(false, Ordering::Relaxed);
                        if turn % 2 == team {
                            worker.clear();
                        }
                    }
                    laps
                })
            };
            (0..load.threads.len()).map(start).collect::<Vec<_>>()
        });
        teams.map(|team| {
            team.into_iter().map(|thread| thread.join().expect("a thread's laps")).collect()
        })
    });
    laps.map(|team: Vec<Vec<Lap>>| (1..ROUNDS).map(|round| rate(&team, round)).collect())
}

/// Million calls a second of all threads in a round.
fn rate(threads: &[Vec<Lap>], round: usize) -> f64 {
    let laps = threads.iter().map(|laps| laps[round]);
    let start = laps.clone().map(|lap| lap.start).min();
    let end = laps.clone().map(|lap| lap.end).max();
    let clock = start.zip(end).map_or(Duration::MAX, |(start, end)| end - start);
    laps.map(|lap| lap.calls).sum::<usize>() as f64 / clock.as_secs_f64() / 1e6
}

/// `channels[from][to]` for a number of threads.
fn channels(threads: usize) -> Vec<Vec<Channel>> {
    (0..threads).map(|_| (0..threads).map(|_| Channel::default()).collect()).collect()
}

/// The middle and the greatest of some values.
fn median_and_best(mut values: Vec<f64>) -> [f64; 2] {
    values.sort_by(f64::total_cmp);
    [values[values.len() / 2], values[values.len() - 1]]
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
        "million calls/s on one processor and on two, best; gain of the best, median gain of a round; round trip"
    );
    for (name, fewest, generate, load_of) in loads {
        let load = |threads| load_of(&generate(1, threads, usize::from(threads) * CALLS), threads);
        let loads = [&load(fewest), &load(2)];
        let row = |allocator: &str, [one, two]: [Vec<f64>; 2]| {
            let gains = one.iter().zip(&two).map(|(one, two)| two / one).collect();
            let [median, _] = median_and_best(gains);
            let [[_, one], [_, two]] = [one, two].map(median_and_best);
            let (gain, nanos) = (two / one, distance::round_trip_nanos(pin));
            println!(
                "{name:8} {allocator:12} {one:6.1} {two:6.1} {gain:5.2}x {median:5.2}x {nanos:5.0} ns"
            );
        };
        row("ThreadMalloc", race(loads, ThreadMalloc::OBJECT));
        row("mi_malloc", race(loads, MiMalloc));
        row("unshared", race(loads, Unshared));
        row("null", race(loads, Null));
        row("libc", race(loads, LibcMalloc));
    }
}
