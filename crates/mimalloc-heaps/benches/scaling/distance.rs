//! Owns the distance of two processors: how long a cache line takes from one to the other and back.

use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

/// Round trips of one measurement, and measurements.
const TRIPS: usize = 2_000;
const SAMPLES: usize = 10;
/// Looks at the line before the other thread gets a turn, in case both are on one processor after all.
const PATIENCE: usize = 10_000;

/// A line of its own, and its neighbour, which processors fetch along.
#[repr(align(128))]
struct Line(AtomicUsize);

impl Line {
    fn wait_for(&self, value: usize) {
        let mut looks = 0;
        // Relaxed: no data goes with it.
        while self.0.load(Ordering::Relaxed) != value {
            looks += 1;
            if looks % PATIENCE == 0 {
                thread::yield_now();
            }
        }
    }
}

/// Nanoseconds of a round trip between the first two processors, the best of some; `pin` keeps a thread on one.
pub(crate) fn round_trip_nanos(pin: fn(usize)) -> f64 {
    let (line, barrier) = (&Line(AtomicUsize::new(0)), &Barrier::new(2));
    let trips = |me: usize| {
        move || {
            pin(me);
            barrier.wait();
            let sample = |sample| {
                let start = Instant::now();
                for trip in sample * TRIPS..(sample + 1) * TRIPS {
                    line.wait_for(2 * trip + me);
                    line.0.store(2 * trip + me + 1, Ordering::Relaxed);
                }
                start.elapsed().as_nanos() as f64 / TRIPS as f64
            };
            (0..SAMPLES).map(sample).fold(f64::INFINITY, f64::min)
        }
    };
    thread::scope(|scope| {
        let other = scope.spawn(trips(1));
        let nanos = scope.spawn(trips(0)).join().expect("no panic");
        other.join().expect("no panic").max(nanos)
    })
}
