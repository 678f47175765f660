//! What a second thread gains, under larson-, mstress- and xmalloc-like loads: `cargo bench -p mimalloc-heaps --bench scaling`.
//!
//! larson and mstress run as one thread and as two. xmalloc runs as two threads on one processor and on two, because one thread
//! cannot free another's blocks. Each thread works on its own blocks; blocks for another thread go over in batches, and whoever
//! has nothing to free yet goes on. A round ends when a thread is through: what both did until then counts. Rounds on one
//! processor and on two alternate, so that both meet the same moods of the machine. Two rows are no allocators: `unshared`,
//! lists without any synchronisation, where only the blocks' own cache lines travel; and `null`, which does nothing: the harness
//! alone. How far apart two processors are decides much, and a virtual machine's host may change it at any time: each round
//! measures it, and the gain is given apart for the rounds that met about the least distance.

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
use distance::Line;
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
    /// Nanoseconds of a round trip between two processors; 0 on one.
    distance: f64,
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

/// What a team did in a round.
#[derive(Clone, Copy)]
struct Round {
    /// Million calls a second of all threads.
    rate: f64,
    distance: f64,
}

/// What two loads did, round by round: the threads of the first share one processor, those of the second have one each.
fn race(loads: [&Load; 2], malloc: impl Malloc + Copy + Send + Sync) -> [Vec<Round>; 2] {
    let line = &Line::default();
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
                            let distance = if team == 1 { line.round_trip(me) } else { 0.0 };
                            let start = Instant::now();
                            let calls = worker.run(&load.threads[me], is_over);
                            laps.push(Lap { start, end: Instant::now(), calls, distance });
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
    laps.map(|team: Vec<Vec<Lap>>| (1..ROUNDS).map(|round| sum(&team, round)).collect())
}

fn sum(threads: &[Vec<Lap>], round: usize) -> Round {
    let laps = threads.iter().map(|laps| laps[round]);
    let start = laps.clone().map(|lap| lap.start).min();
    let end = laps.clone().map(|lap| lap.end).max();
    let clock = start.zip(end).map_or(Duration::MAX, |(start, end)| end - start);
    let distance = laps.clone().map(|lap| lap.distance).fold(0.0, f64::max);
    let calls: usize = laps.map(|lap| lap.calls).sum();
    Round { rate: calls as f64 / clock.as_secs_f64() / 1e6, distance }
}

/// `channels[from][to]` for a number of threads.
fn channels(threads: usize) -> Vec<Vec<Channel>> {
    (0..threads).map(|_| (0..threads).map(|_| Channel::default()).collect()).collect()
}

/// The median gain of some rounds, or nothing without any.
fn median(gains: impl Iterator<Item = f64>) -> String {
    let mut gains: Vec<f64> = gains.collect();
    gains.sort_by(f64::total_cmp);
    gains
        .get(gains.len() / 2)
        .map_or(String::new(), |gain| format!("{gain:.2}x of {}", gains.len()))
}

/// One line of the table.
fn print(load: &str, allocator: &str, [one, two]: [Vec<Round>; 2]) {
    let best = |rounds: &[Round]| rounds.iter().map(|round| round.rate).fold(0.0, f64::max);
    let least = two.iter().map(|round| round.distance).fold(f64::INFINITY, f64::min);
    let gains = one.iter().zip(&two).map(|(one, two)| (two.rate / one.rate, two.distance));
    let (near, far): (Vec<_>, Vec<_>) = gains.partition(|(_, distance)| *distance < 2.0 * least);
    let [near, far] = [near, far].map(|gains| median(gains.into_iter().map(|(gain, _)| gain)));
    let [one, two] = [one, two].map(|rounds| best(&rounds));
    println!(
        "{load:8} {allocator:12} {one:6.1} {two:6.1} {:5.2}x {least:4.0} ns {near:>11} {far:>11}",
        two / one
    );
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
        "million calls/s on one processor and on two, best, and the gain; least distance, median gain near it and farther off"
    );
    for (name, fewest, generate, load_of) in loads {
        let load = |threads| load_of(&generate(1, threads, usize::from(threads) * CALLS), threads);
        let loads = [&load(fewest), &load(2)];
        let row = |allocator: &str, rounds| print(name, allocator, rounds);
        row("ThreadMalloc", race(loads, ThreadMalloc::OBJECT));
        row("mi_malloc", race(loads, MiMalloc));
        row("unshared", race(loads, Unshared));
        row("null", race(loads, Null));
        row("libc", race(loads, LibcMalloc));
    }
}
