//! Owns the choice of blocks to sample: each byte is equally likely to be chosen, on the average one in an interval.
//!
//! The bytes between two choices are drawn from an exponential distribution (a Poisson process over the bytes), so that no
//! pattern of a program's sizes can escape the choice. A block of `s` bytes is chosen with probability `1 - exp(-s / interval)`,
//! and counts as often as that says: the sums are right on the average whatever the sizes. As in tcmalloc and jemalloc.

use std::cell::Cell;
use std::hint;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use malloc_api::MAX_REQUEST;

use crate::snapshot::Amount;

thread_local! {
    /// Bytes until the next choice; negative once it is due. A thread begins with its first draw.
    static LEFT: Cell<i64> = const { Cell::new(0) };
    /// The state of the generator; 0 before the first draw.
    static STATE: Cell<u64> = const { Cell::new(0) };
}

/// Bytes until the next choice, of callers whose calls never overlap, as Python's threads hold the GIL; of others it stays at 0.
///
/// Bytes of calls that overlap all the same may not be counted.
#[derive(Debug, Default)]
pub struct Countdown(AtomicUsize);

impl Countdown {
    /// One that has not begun.
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicUsize::new(0))
    }

    /// Whether the countdown has begun and does not end in the next `size` bytes, which it then has passed.
    #[inline(always)]
    pub fn passes(&self, size: usize) -> bool {
        let left = self.0.load(Relaxed);
        // What is left is no larger than a request may be, so that those who are let pass need not be asked.
        // SAFETY: no more than `next` gives is ever stored.
        unsafe { hint::assert_unchecked(left <= MAX_REQUEST) };
        let passes = size < left;
        if passes {
            self.0.store(left - size, Relaxed);
        }
        passes
    }

    /// Begins anew where it did not pass `size` bytes; whether they are to be sampled, which the first ones are seldom.
    pub(crate) fn begin(&self, size: usize, interval: u64) -> bool {
        let has_begun = self.0.load(Relaxed) > 0;
        self.0.store(next(interval), Relaxed);
        let is_chosen = has_begun || !self.passes(size);
        if is_chosen && !has_begun {
            self.0.store(next(interval), Relaxed);
        }
        is_chosen
    }
}

/// The bytes between two choices, at least one, and no more than a request may have.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "above 0, and `as` saturates"
)]
fn next(interval: u64) -> usize {
    ((-uniform().ln() * interval as f64) as usize).saturating_add(1).min(MAX_REQUEST)
}

/// Whether an allocation of `size` bytes is to be sampled.
///
/// One subtraction, usually; with an interval of 0 every one is. A thread whose thread-locals are gone is not sampled.
#[inline]
pub(crate) fn choose(size: usize, interval: u64) -> bool {
    if interval == 0 {
        return true;
    }
    LEFT.try_with(|left| {
        let rest = left.get().saturating_sub(size.min(i64::MAX as usize) as i64);
        left.set(rest);
        rest < 0 && draw(left, size, interval)
    })
    .unwrap_or(false)
}

/// Draws the bytes until the next choice. A thread's first draw chooses nothing: its countdown had not begun.
#[cold]
fn draw(left: &Cell<i64>, size: usize, interval: u64) -> bool {
    let first = STATE.with(Cell::get) == 0;
    let next = || next(interval) as i64;
    if !first {
        left.set(next());
        return true;
    }
    // The countdown of a first allocation begins before its bytes.
    let rest = next().saturating_sub(size.min(i64::MAX as usize) as i64);
    left.set(if rest < 0 { next() } else { rest });
    rest < 0
}

/// A number above 0 and at most 1.
fn uniform() -> f64 {
    let bits = STATE.with(|state| {
        let mut x = match state.get() {
            0 => seed(state),
            x => x,
        };
        // Marsaglia's xorshift64*.
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        state.set(x);
        x.wrapping_mul(0x2545_F491_4F6C_DD1D)
    });
    ((bits >> 11) + 1) as f64 / (1_u64 << 53) as f64
}

/// Differs by thread and by process: an address, and the time.
fn seed(state: &Cell<u64>) -> u64 {
    let time = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_nanos() as u64);
    (std::ptr::from_ref(state).addr() as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ time | 1
}

/// What a sampled block of `size` bytes stands for.
///
/// Fractions are rounded up as often as they say, so that sums of many blocks are right on the average.
pub(crate) fn weigh(size: usize, interval: u64) -> Amount {
    if interval == 0 {
        return Amount::block(size);
    }
    let size = size.max(1) as f64;
    let blocks = 1.0 / -(-size / interval as f64).exp_m1();
    let round = |exact: f64| {
        let down = exact.floor();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative")]
        let whole = down as u64;
        whole + u64::from(uniform() <= exact - down)
    };
    Amount { bytes: round(blocks * size), blocks: round(blocks) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_countdown_chooses_as_often_as_the_weights_say() {
        const INTERVAL: u64 = 4_096;
        let mut bytes = [0; 2];
        // Many countdowns, so that the first choice of each counts, too.
        for round in 0..20_000 {
            let countdown = Countdown::default();
            for size in [9_000, 16, 100, 3_000 + round % 7, 0] {
                let is_chosen = !countdown.passes(size) && countdown.begin(size, INTERVAL);
                assert!(size > 0 || !is_chosen, "a block without bytes");
                bytes[0] += if is_chosen { weigh(size, INTERVAL).bytes } else { 0 };
                bytes[1] += size as u64;
            }
        }
        let [seen, all] = bytes.map(|bytes| bytes as f64);
        assert!((seen / all - 1.0).abs() < 0.02, "{seen} of {all} bytes");
    }
}
