//! Random programs against plain models.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use pymem_sync::qsbr::{Delayed, Domain, Limits, Participant, Reclaim, Seq};

proptest! {
    /// Over any stretch of fewer than 2^62 advances, "before" is what counting without a wrap says.
    #[test]
    fn before_is_what_counting_says(start: u64, distance in 0_u64..1 << 62) {
        let early = Seq::new(start);
        let late = Seq::new(early.get().wrapping_add(2 * distance));
        prop_assert_eq!(early.is_before(late), distance > 0);
        prop_assert!(!late.is_before(early));
    }

    #[test]
    fn a_successor_is_odd_and_later(start: u64) {
        let seq = Seq::new(start);
        prop_assert_eq!(seq.next().get() % 2, 1);
        prop_assert!(seq.is_before(seq.next()));
    }

    #[test]
    fn a_delayed_queue_does_what_its_model_does(
        start: u64,
        limits in (0_usize..6, 0_usize..600),
        steps in prop::collection::vec(step(), 0..200),
    ) {
        check(Seq::new(start), Limits { items: limits.0, bytes: limits.1 }, &steps)?;
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Retire(usize),
    Process,
    Flush,
    Quiescent,
    Attach,
    Detach,
    Advance,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0_usize..300).prop_map(Step::Retire),
        2 => Just(Step::Process),
        1 => Just(Step::Flush),
        2 => Just(Step::Quiescent),
        1 => Just(Step::Attach),
        1 => Just(Step::Detach),
        1 => Just(Step::Advance),
    ]
}

struct Item<'a> {
    number: usize,
    bytes: usize,
    /// The number that must be reclaimed next.
    next: &'a AtomicUsize,
}

impl Reclaim for Item<'_> {
    fn bytes(&self) -> usize {
        self.bytes
    }

    fn reclaim(self) {
        assert_eq!(self.next.fetch_add(1, Ordering::Relaxed), self.number, "out of order");
    }
}

/// The same with counters that never wrap: one reader, goals as numbers of advances.
struct Expected {
    advances: u64,
    seen: Option<u64>,
    /// Bytes and, once closed, the goal of each waiting item.
    waiting: VecDeque<(usize, Option<u64>)>,
    items: usize,
    bytes: usize,
    reclaimed: usize,
}

impl Expected {
    fn close(&mut self, goal: u64) {
        self.waiting.iter_mut().for_each(|item| item.1 = item.1.or(Some(goal)));
    }

    fn process(&mut self) {
        self.close(self.advances + 1);
        let reached = self.seen.unwrap_or(self.advances);
        while self.waiting.front().is_some_and(|item| item.1.is_some_and(|goal| goal <= reached)) {
            self.waiting.pop_front();
            self.reclaimed += 1;
        }
    }

    fn flush(&mut self) {
        let closed = self.waiting.iter().all(|item| item.1.is_some());
        if closed && self.waiting.back().is_some_and(|item| item.1 > Some(self.advances)) {
            self.advances += 1;
        }
        self.advance_and_process();
    }

    fn advance_and_process(&mut self) {
        if self.waiting.iter().any(|item| item.1.is_none()) {
            self.advances += 1;
            self.close(self.advances);
        }
        (self.items, self.bytes) = (0, 0);
        self.process();
    }
}

fn check(start: Seq, limits: Limits, steps: &[Step]) -> Result<(), TestCaseError> {
    let next = AtomicUsize::new(0);
    let domain = Domain::starting_at(start);
    let collector = domain.collector();
    let reader = Participant::register(collector).unwrap();
    let delayed = Delayed::new(&domain, limits).unwrap();
    let mut expected = Expected {
        advances: 0,
        seen: None,
        waiting: VecDeque::new(),
        items: 0,
        bytes: 0,
        reclaimed: 0,
    };
    let mut retired = 0;
    for step in steps {
        match *step {
            Step::Retire(bytes) => {
                // SAFETY: (1), (2), (3) nobody can reach the items.
                let queued =
                    unsafe { delayed.retire(Item { number: retired, bytes, next: &next }) };
                prop_assert!(queued.is_ok());
                retired += 1;
                expected.waiting.push_back((bytes, None));
                expected.items += 1;
                expected.bytes += bytes;
                if expected.items > limits.items || expected.bytes > limits.bytes {
                    expected.advance_and_process();
                }
            }
            Step::Process => {
                delayed.process();
                expected.process();
            }
            Step::Flush => {
                delayed.flush();
                expected.flush();
            }
            Step::Quiescent => {
                reader.quiescent_state();
                expected.seen = expected.seen.map(|_| expected.advances);
            }
            Step::Attach if !reader.is_attached() => {
                reader.attach();
                expected.seen = Some(expected.advances);
            }
            Step::Attach => {}
            Step::Detach => {
                reader.detach();
                expected.seen = None;
            }
            Step::Advance => {
                let _ = collector.advance();
                expected.advances += 1;
            }
        }
        prop_assert_eq!(next.load(Ordering::Relaxed), expected.reclaimed, "{:?}", step);
        prop_assert_eq!(delayed.pending().items, expected.waiting.len());
        let bytes: usize = expected.waiting.iter().map(|item| item.0).sum();
        prop_assert_eq!(delayed.pending().bytes, bytes);
        prop_assert_eq!(delayed.since_advance().items, expected.items);
    }
    reader.detach();
    drop(delayed);
    prop_assert_eq!(next.load(Ordering::Relaxed), retired, "every item, once all have left");
    Ok(())
}
