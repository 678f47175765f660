//! Limits, order, re-entry and hand-over of the delayed queue.

use std::cell::{Cell, RefCell};
use std::ffi::c_int;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use pymem_sync::qsbr::{Delayed, Domain, Limits, Participant, Pending, Reclaim};
use rstest::rstest;

/// Writes its number to a log when it is reclaimed.
struct Logged {
    number: usize,
    bytes: usize,
    log: Arc<Mutex<Vec<usize>>>,
}

impl Reclaim for Logged {
    fn bytes(&self) -> usize {
        self.bytes
    }

    fn reclaim(self) {
        self.log.lock().unwrap().push(self.number);
    }
}

fn retire<T: Reclaim>(delayed: &Delayed<'_, T>, item: T) {
    // SAFETY: (1), (2), (3) no reader can reach the items of these tests.
    assert!(unsafe { delayed.retire(item) }.is_ok());
}

#[rstest]
#[case::items(Limits { items: 127, bytes: 1024 }, 0, 128)]
#[case::bytes(Limits { items: 127, bytes: 1024 }, 100, 11)]
#[case::one_big(Limits { items: 127, bytes: 1024 }, 1025, 1)]
#[case::exactly_the_limit(Limits { items: 127, bytes: 1024 }, 1024, 2)]
#[case::no_items(Limits { items: 0, bytes: 1024 }, 0, 1)]
#[case::the_default_in_items(Limits::default(), 1, 128)]
#[case::the_default_in_bytes(Limits::default(), 10_000, 105)]
#[case::a_big_item_by_default(Limits::default(), 1024 * 1024 + 1, 1)]
fn the_item_that_exceeds_a_limit_advances(
    #[case] limits: Limits,
    #[case] bytes: usize,
    #[case] exceeds: usize,
) {
    let (domain, log) = (Domain::new(), Arc::default());
    let collector = domain.collector();
    let delayed = Delayed::new(&domain, limits).unwrap();
    let reader = Participant::register(collector).unwrap();
    reader.attach();
    let start = collector.current();
    for number in 1..exceeds {
        retire(&delayed, Logged { number, bytes, log: Arc::clone(&log) });
        assert_eq!(collector.current(), start, "item {number} advanced");
        assert_eq!(delayed.since_advance(), Pending { items: number, bytes: number * bytes });
    }
    retire(&delayed, Logged { number: exceeds, bytes, log: Arc::clone(&log) });
    assert_eq!(collector.current(), start.next());
    assert_eq!(delayed.since_advance(), Pending::default());
    assert_eq!(delayed.pending(), Pending { items: exceeds, bytes: exceeds * bytes });
    assert_eq!(delayed.process(), 0, "the reader is attached");
    reader.quiescent_state();
    assert_eq!(delayed.process(), exceeds);
    assert_eq!(*log.lock().unwrap(), (1..=exceeds).collect::<Vec<_>>(), "oldest first");
    assert_eq!(delayed.pending(), Pending::default());
    reader.detach();
}

#[test]
fn limits_can_be_changed_and_seen() {
    let domain = Domain::<Logged>::new();
    let delayed = Delayed::new(&domain, Limits::default()).unwrap();
    assert_eq!(delayed.limits(), Limits { items: 127, bytes: 1 << 20 });
    delayed.set_limits(Limits { items: 1, bytes: 2 });
    assert_eq!(delayed.limits(), Limits { items: 1, bytes: 2 });
}

#[test]
fn a_deferred_batch_waits_for_somebody_elses_advance() {
    let (domain, log) = (Domain::new(), Arc::default());
    let collector = domain.collector();
    let delayed = Delayed::new(&domain, Limits::default()).unwrap();
    retire(&delayed, Logged { number: 1, bytes: 0, log: Arc::clone(&log) });
    assert!(!delayed.should_process());
    assert_eq!(delayed.process(), 0, "nobody has advanced");
    assert!(delayed.should_process());
    assert_eq!(delayed.process(), 0, "nobody has advanced");
    let _ = collector.advance();
    assert_eq!(delayed.process(), 1);
    assert!(!delayed.should_process());
}

#[test]
fn the_newest_item_is_not_reclaimed_with_an_older_batch() {
    let (domain, log) = (Domain::new(), Arc::default());
    let collector = domain.collector();
    let delayed = Delayed::new(&domain, Limits::default()).unwrap();
    let reader = Participant::register(collector).unwrap();
    reader.attach();
    let item = |number| Logged { number, bytes: 0, log: Arc::clone(&log) };
    retire(&delayed, item(1));
    assert_eq!(delayed.flush(), 0);
    reader.quiescent_state();
    retire(&delayed, item(2));
    assert_eq!(delayed.flush(), 1);
    assert_eq!(*log.lock().unwrap(), [1]);
    reader.quiescent_state();
    assert_eq!(delayed.process(), 1);
    reader.detach();
}

thread_local! {
    static QUEUE: RefCell<Option<Rc<Delayed<'static, Chain>>>> = const { RefCell::new(None) };
}

/// An object whose free drops its last reference to the next one.
struct Chain {
    left: usize,
    freed: &'static AtomicUsize,
}

impl Reclaim for Chain {
    fn reclaim(self) {
        self.freed.fetch_add(1, Ordering::Relaxed);
        if self.left > 0 {
            let queue = QUEUE.with_borrow(|queue| queue.clone()).unwrap();
            retire(&queue, Chain { left: self.left - 1, freed: self.freed });
            assert_eq!(queue.process(), 0, "nested processing does nothing");
        }
    }
}

#[test]
fn reclaim_may_retire_into_its_own_queue() {
    static FREED: AtomicUsize = AtomicUsize::new(0);
    let domain: &'static Domain<Chain> = Box::leak(Box::new(Domain::new()));
    // Every item advances, so each nested `retire` tries to process.
    let queue = Rc::new(Delayed::new(domain, Limits { items: 0, bytes: 0 }).unwrap());
    QUEUE.set(Some(Rc::clone(&queue)));
    retire(&queue, Chain { left: 1000, freed: &FREED });
    let mut rounds = 0;
    while queue.pending().items > 0 {
        assert_eq!(queue.process(), 1, "one link a call: what is retired meanwhile waits");
        rounds += 1;
    }
    assert_eq!(FREED.load(Ordering::Relaxed), 1001);
    assert_eq!(rounds, 1000);
    QUEUE.set(None);
}

#[test]
fn an_exiting_thread_leaves_its_items_to_the_others() {
    let (domain, log) = (Domain::new(), Arc::default());
    let collector = domain.collector();
    let reader = Participant::register(collector).unwrap();
    reader.attach();
    thread::scope(|scope| {
        for thread in 0..4 {
            let (domain, log) = (&domain, Arc::clone(&log));
            scope.spawn(move || {
                let delayed = Delayed::new(domain, Limits::default()).unwrap();
                for number in 0..10 {
                    let number = thread * 10 + number;
                    retire(&delayed, Logged { number, bytes: 1, log: Arc::clone(&log) });
                }
            });
        }
    });
    assert!(log.lock().unwrap().is_empty(), "the reader is attached");
    let delayed = Delayed::new(&domain, Limits::default()).unwrap();
    assert_eq!(delayed.process(), 0);
    assert!(domain.has_abandoned(), "put back");
    reader.quiescent_state();
    assert_eq!(delayed.process(), 40);
    let mut numbers = log.lock().unwrap().clone();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..40).collect::<Vec<_>>());
    reader.detach();
}

/// A queue that is dropped gives its items their goal then, and not when somebody finds the queue.
#[test]
fn a_dropped_queue_waits_for_one_quiescent_state() {
    let (domain, log) = (Domain::new(), Arc::default());
    let reader = Participant::register(domain.collector()).unwrap();
    reader.attach();
    let delayed = Delayed::new(&domain, Limits::default()).unwrap();
    retire(&delayed, Logged { number: 1, bytes: 1, log: Arc::clone(&log) });
    drop(delayed);
    reader.quiescent_state();
    assert_eq!(domain.process(), 1);
    reader.detach();
}

thread_local! {
    static YIELDS: Cell<usize> = const { Cell::new(0) };
}

/// In place of the C library's, for this program: it counts the calls of each thread.
// SAFETY: the system's function, with its signature.
#[unsafe(no_mangle)]
extern "C" fn sched_yield() -> c_int {
    let _ = YIELDS.try_with(|yields| yields.set(yields.get() + 1));
    // SAFETY: no arguments.
    unsafe { libc::syscall(libc::SYS_sched_yield) as c_int }
}

/// A thread that retires faster than a reader reports lets the reader run, once more than 8 times the limit waits.
#[test]
fn pressure_yields_the_time_slice() {
    let (domain, log) = (Domain::new(), Arc::default());
    let reader = Participant::register(domain.collector()).unwrap();
    reader.attach();
    let delayed = Delayed::new(&domain, Limits { items: 0, bytes: 10 }).unwrap();
    let before = YIELDS.get();
    let yields = [(); 10].map(|()| {
        retire(&delayed, Logged { number: 1, bytes: 10, log: Arc::clone(&log) });
        YIELDS.get() - before
    });
    // 80 bytes wait after the eighth item: no more than 8 times the limit.
    assert_eq!(yields, [0, 0, 0, 0, 0, 0, 0, 0, 4, 8]);
    reader.detach();
}

/// Another thread's queue is not processed within a reclaim either.
#[test]
fn nested_processing_leaves_abandoned_queues_alone() {
    struct Nested(Rc<Delayed<'static, Nested>>);
    // SAFETY: the items of this test stay on one thread.
    unsafe impl Send for Nested {}
    impl Reclaim for Nested {
        fn reclaim(self) {
            assert_eq!(self.0.process(), 0);
        }
    }
    let domain: &'static Domain<Nested> = Box::leak(Box::new(Domain::new()));
    let queue = || Rc::new(Delayed::new(domain, Limits::default()).unwrap());
    let (own, other) = (queue(), queue());
    let reader = Participant::register(domain.collector()).unwrap();
    reader.attach();
    retire(&other, Nested(Rc::clone(&own)));
    drop(other);
    retire(&own, Nested(Rc::clone(&own)));
    reader.detach();
    assert_eq!(
        own.flush(),
        2,
        "the own item, whose reclaim processes nothing, then the other queue's"
    );
}

#[test]
fn interpreter_end_reclaims_everything() {
    let log = Arc::default();
    {
        let domain = Domain::new();
        let collector = domain.collector();
        let reader = Participant::register(collector).unwrap();
        reader.attach();
        let delayed = Delayed::new(&domain, Limits::default()).unwrap();
        for number in 0..300 {
            retire(&delayed, Logged { number, bytes: 1, log: Arc::clone(&log) });
        }
        drop(delayed);
        assert!(log.lock().unwrap().is_empty());
        reader.detach();
    }
    assert_eq!(log.lock().unwrap().len(), 300);
}

#[test]
fn a_stopped_world_reclaims_at_once() {
    let (domain, log) = (Domain::new(), Arc::default());
    let collector = domain.collector();
    let reader = Participant::register(collector).unwrap();
    reader.attach();
    let delayed = Delayed::new(&domain, Limits::default()).unwrap();
    for number in 0..200 {
        retire(&delayed, Logged { number, bytes: 1, log: Arc::clone(&log) });
    }
    // SAFETY: (1) the reader is this thread, which holds no reference.
    assert_eq!(unsafe { delayed.reclaim_all() }, 200);
    assert_eq!(delayed.pending(), Pending::default());
    assert!(!delayed.should_process());
    reader.detach();
}

/// Panics when it is reclaimed as number 1; notes its number when it is dropped, however that comes.
struct Fragile {
    number: usize,
    dropped: Arc<Mutex<Vec<usize>>>,
}

impl Reclaim for Fragile {
    fn reclaim(self) {
        assert_ne!(self.number, 1, "on purpose");
    }
}

impl Drop for Fragile {
    fn drop(&mut self) {
        self.dropped.lock().unwrap().push(self.number);
    }
}

/// Items behind one that unwinds wait for their own goals: a reader may still see them.
#[rstest]
#[case::of_the_domain(false)]
#[case::of_the_queue(true)]
fn a_reclaim_that_unwinds_drops_nothing_else(#[case] own: bool) {
    let domain = Domain::new();
    let dropped = Arc::<Mutex<Vec<usize>>>::default();
    let item = |number| Fragile { number, dropped: Arc::clone(&dropped) };
    let reader = Participant::register(domain.collector()).unwrap();
    let delayed = Delayed::new(&domain, Limits::default()).unwrap();
    retire(&delayed, item(0));
    retire(&delayed, item(1));
    retire(&delayed, item(2));
    reader.attach();
    if own {
        let unwound = catch_unwind(AssertUnwindSafe(|| delayed.flush()));
        assert!(unwound.is_ok(), "the reader is attached");
        reader.quiescent_state();
        retire(&delayed, item(3));
        assert!(catch_unwind(AssertUnwindSafe(|| delayed.process())).is_err());
        assert_eq!(*dropped.lock().unwrap(), [0, 1], "what lies behind stays");
        drop(delayed);
    } else {
        drop(delayed);
        reader.quiescent_state();
        let late = Delayed::new(&domain, Limits::default()).unwrap();
        retire(&late, item(3));
        assert!(catch_unwind(AssertUnwindSafe(|| drop(late))).is_err());
        assert_eq!(*dropped.lock().unwrap(), [0, 1], "what lies behind stays");
        domain.process();
    }
    assert_eq!(*dropped.lock().unwrap(), [0, 1, 2], "the reader may still see the last");
    reader.detach();
    domain.process();
    assert_eq!(*dropped.lock().unwrap(), [0, 1, 2, 3]);
}

/// A queue below the one whose item unwinds goes back to the domain.
#[test]
fn a_reclaim_that_unwinds_loses_no_queue() {
    let domain = Domain::new();
    let dropped = Arc::<Mutex<Vec<usize>>>::default();
    let reader = Participant::register(domain.collector()).unwrap();
    reader.attach();
    for number in [2, 1] {
        let delayed = Delayed::new(&domain, Limits::default()).unwrap();
        retire(&delayed, Fragile { number, dropped: Arc::clone(&dropped) });
    }
    reader.detach();
    assert!(catch_unwind(AssertUnwindSafe(|| domain.process())).is_err(), "the newest comes first");
    assert_eq!(domain.process(), 1);
    assert_eq!(*dropped.lock().unwrap(), [1, 2]);
}

/// One thread retires 3 MB items for ever while the others poll: CPython held 6.7 GB before it had limits.
///
/// The readers follow in step: none is ever more than `LAG` items behind, however late it is scheduled, so what waits
/// follows from the limits alone.
#[test]
fn big_items_stay_bounded() {
    const ITEM_BYTES: usize = 3_000_000;
    const BOUND_BYTES: usize = 64 * 1024 * 1024;
    const ITEMS: usize = 300;
    const LAG: usize = 8;
    struct Buffer(Vec<u8>);
    impl Reclaim for Buffer {
        fn bytes(&self) -> usize {
            self.0.len()
        }
        fn reclaim(self) {}
    }
    /// Lets the readers end, also when an assertion fails.
    struct AllRetired<'a>(&'a AtomicUsize);
    impl Drop for AllRetired<'_> {
        fn drop(&mut self) {
            self.0.store(ITEMS, Ordering::Release);
        }
    }
    let domain = Domain::new();
    let collector = domain.collector();
    let retired = AtomicUsize::new(0);
    // Of each reader, how many items had been retired before its last quiescent state.
    let seen = [const { AtomicUsize::new(0) }; 2];
    let highest = thread::scope(|scope| {
        for seen in &seen {
            let (collector, retired) = (&collector, &retired);
            scope.spawn(move || {
                let reader = Participant::register(collector).unwrap();
                reader.attach();
                while seen.load(Ordering::Relaxed) < ITEMS {
                    let now = retired.load(Ordering::Acquire);
                    reader.quiescent_state();
                    if seen.swap(now, Ordering::Release) == now {
                        thread::yield_now();
                    }
                }
                reader.detach();
            });
        }
        let _end = AllRetired(&retired);
        let me = Participant::register(collector).unwrap();
        me.attach();
        let delayed = Delayed::new(&domain, Limits::default()).unwrap();
        let mut highest = 0;
        for number in 1..=ITEMS {
            let mut buffer = vec![0_u8; ITEM_BYTES];
            // As a list that is filled: one write a page.
            buffer.iter_mut().step_by(4096).for_each(|byte| *byte = number as u8);
            retire(&delayed, Buffer(buffer));
            highest = highest.max(delayed.pending().bytes);
            me.quiescent_state();
            retired.store(number, Ordering::Release);
            while seen.iter().any(|seen| seen.load(Ordering::Acquire) + LAG < number) {
                thread::yield_now();
            }
        }
        me.detach();
        highest
    });
    assert!(highest < BOUND_BYTES, "{} MiB waited", highest >> 20);
    // The items that a reader may lag behind, the one that it has seen and nobody polled for, and the newest.
    assert!(highest <= (LAG + 2) * ITEM_BYTES, "{} items waited", highest / ITEM_BYTES);
}
