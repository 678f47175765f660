//! Owns the distance of two processors: how long a cache line takes from one to the other and back.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

/// Round trips of one measurement.
const TRIPS: usize = 200;
/// Looks at the line before the other thread gets a turn, in case both are on one processor after all.
const PATIENCE: usize = 10_000;

/// A line of its own, and its neighbour, which processors fetch along.
#[derive(Default)]
#[repr(align(128))]
pub(crate) struct Line(AtomicUsize);

impl Line {
    /// Nanoseconds of a round trip, for two threads that call it at the same time, as 0 and 1, equally often.
    pub(crate) fn round_trip(&self, me: usize) -> f64 {
        self.pass_on(me, 1); // Until both are here.
        let start = Instant::now();
        self.pass_on(me, TRIPS);
        start.elapsed().as_nanos() as f64 / TRIPS as f64
    }

    /// Waits for the line, whose number is even for 0 and odd for 1, and counts it up.
    fn pass_on(&self, me: usize, trips: usize) {
        for _ in 0..trips {
            let mut looks = 0;
            // Relaxed: no data goes with it.
            let number = loop {
                let number = self.0.load(Ordering::Relaxed);
                if number % 2 == me {
                    break number;
                }
                looks += 1;
                if looks % PATIENCE == 0 {
                    thread::yield_now();
                }
            };
            self.0.store(number + 1, Ordering::Relaxed);
        }
    }
}
