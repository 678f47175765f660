//! Owns whose turn it is to be guarded: about one allocation in N, at random distances.
//! Leaves the guarded block itself to `pool.rs`.

use core::cell::Cell;
use core::num::NonZeroU32;
use core::ptr;

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::thread::thread_pointer;

/// Allocations to the next one that is guarded, itself included: `rate` on average.
fn distance(rate: NonZeroU32) -> u32 {
    1 + random() % rate.get().saturating_mul(2).saturating_sub(1)
}

/// A xorshift generator a thread, seeded from where its state lies.
pub(crate) fn random() -> u32 {
    thread_local! {
        static STATE: Cell<u64> = const { Cell::new(0) };
    }
    STATE
        .try_with(|state| {
            let mut x = state.get();
            if x == 0 {
                x = ptr::from_ref(state).addr() as u64 | 1;
            }
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            state.set(x);
            (x >> 24) as u32
        })
        .unwrap_or(1)
}

/// A counter alone on its cache line.
#[derive(Debug)]
#[repr(align(64))]
struct Counter(AtomicU32);

/// Turns until the next look, while nothing is sampled.
const IDLE_TURNS: u32 = 4096;

/// Counts allocations down to the next guarded one, by groups of threads.
///
/// A thread has its group by its thread pointer: a thread-local variable of a library that is loaded would cost a call. Two
/// threads of one group may both take the same number; then a turn comes a little later, or two of them at once.
#[derive(Debug)]
pub(crate) struct Countdowns<const GROUPS: usize>([Counter; GROUPS]);

impl<const GROUPS: usize> Countdowns<GROUPS> {
    pub(crate) const fn new() -> Self {
        Self([const { Counter(AtomicU32::new(0)) }; GROUPS])
    }

    #[inline(always)]
    fn own(&self) -> &AtomicU32 {
        // Thread pointers differ in their bits from the fifteenth on: the product has them in those that are left.
        let mixed = (thread_pointer() as u64).wrapping_mul(0x3C6E_F35F);
        &self.0[(mixed >> 42) as usize % GROUPS].0
    }

    /// Whether this allocation passes unguarded; if not, [`is_due`](Self::is_due) decides.
    #[inline(always)]
    pub(crate) fn passes(&self) -> bool {
        let own = self.own();
        let left = own.load(Relaxed).checked_sub(1);
        if let Some(left) = left {
            own.store(left, Relaxed);
        }
        left.is_some()
    }

    /// Whether an allocation that did not pass is to be guarded, where one in `rate` is; draws the distance to the next. The
    /// first of a group is guarded too.
    pub(crate) fn is_due(&self, rate: Option<NonZeroU32>) -> bool {
        let turns = rate.map_or(IDLE_TURNS, |rate| distance(rate) - 1);
        self.own().store(turns, Relaxed);
        rate.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guarded(countdowns: &Countdowns<64>, rate: Option<NonZeroU32>, calls: u32) -> u32 {
        (0..calls).map(|_| u32::from(!countdowns.passes() && countdowns.is_due(rate))).sum()
    }

    #[test]
    fn one_in_n() {
        for n in [1, 2, 10, 1000] {
            let calls = n * 2000;
            let found = guarded(&Countdowns::new(), NonZeroU32::new(n), calls);
            assert!((1800..=2200).contains(&found), "{found} of {calls} at 1/{n}");
        }
        assert_eq!(guarded(&Countdowns::new(), NonZeroU32::new(1), 100), 100);
    }

    #[test]
    fn a_rate_that_comes_late_is_met() {
        let countdowns = Countdowns::new();
        assert_eq!(guarded(&countdowns, None, 10_000), 0);
        let found = guarded(&countdowns, NonZeroU32::new(10), 24_096);
        assert!((1800..=2600).contains(&found), "{found}");
    }

    #[test]
    fn few_threads_share_a_counter() {
        let countdowns = &Countdowns::<64>::new();
        // All live at once: a thread that ends hands its thread pointer on.
        let gate = &std::sync::Barrier::new(16);
        let own = std::thread::scope(|scope| {
            let one = move || {
                gate.wait();
                let own = ptr::from_ref(countdowns.own()).addr();
                gate.wait();
                own
            };
            let threads: Vec<_> = (0..16).map(|_| scope.spawn(one)).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect::<std::collections::HashSet<_>>()
        });
        assert!(own.len() >= 8, "16 threads have {} counters", own.len());
    }
}
