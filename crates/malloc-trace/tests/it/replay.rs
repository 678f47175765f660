//! Replays make exactly the calls of the program, free everything, and touch memory as they say.

use std::cell::Cell;
use std::ptr::NonNull;

use malloc_api::testing::{Counting, FailAfter, conformance};
use malloc_api::{LibcMalloc, Malloc};
use malloc_trace::{Event, Functions, Op, OutOfMemory, Replay, ThreadedReplay, generate, run};
use rstest::rstest;

#[test]
fn functions_conform() {
    conformance(&Functions::of(&LibcMalloc));
}

#[rstest]
fn calls_are_those_of_the_model(#[values(1, 2, 3)] seed: u64) {
    let ops = generate::random(seed, 5000, 2000);
    let (modelled, replayed) = (Counting::new(LibcMalloc), Counting::new(LibcMalloc));
    let summary = run(&ops, &modelled).expect("a correct allocator");
    let mut replay = Replay::new(&ops);
    let functions = Functions::of(&replayed);
    let mut live_at_end = 0;
    for pass in 1..=2 {
        replay
            .pass([functions; 3], || live_at_end = replayed.counts().live_blocks)
            .expect("memory");
        let (modelled, replayed) = (modelled.counts(), replayed.counts());
        assert_eq!(replayed.malloc, pass * modelled.malloc);
        assert_eq!(replayed.calloc, pass * modelled.calloc);
        assert_eq!(replayed.realloc, pass * modelled.realloc);
        assert_eq!(replayed.peak_blocks, modelled.peak_blocks);
        assert_eq!((live_at_end, replayed.live_blocks), (summary.live_blocks, 0));
    }
}

#[test]
fn blocks_stay_in_their_domain() {
    let domains = [0, 1, 2].map(|_| Counting::new(LibcMalloc));
    let [raw, mem, obj] = &domains;
    let functions = [Functions::of(raw), Functions::of(mem), Functions::of(obj)];
    let ops = generate::random(5, 3000, 500);
    Replay::new(&ops).pass(functions, || ()).expect("memory");
    assert!(domains.iter().all(|domain| domain.counts().live_blocks == 0));
    assert!(domains.iter().all(|domain| domain.counts().malloc > 100));
    for domain in &domains {
        domain.reset_calls();
    }
    let events: Vec<Event> = ops.into_iter().map(Event::from).collect();
    ThreadedReplay::new(&events).pass([raw, mem, obj]).expect("memory");
    assert!(domains.iter().all(|domain| domain.counts().live_blocks == 0));
    assert!(domains.iter().all(|domain| domain.counts().malloc > 100));
}

/// Every failure point: the error names the operation, and everything is freed.
#[test]
fn out_of_memory_frees_everything() {
    let ops = generate::random(7, 150, 500);
    let events: Vec<Event> = ops.iter().copied().map(Event::from).collect();
    let (mut replay, threaded) = (Replay::new(&ops), ThreadedReplay::new(&events));
    let mut failures = 0;
    for start in 0.. {
        let failing = FailAfter::new(Counting::new(LibcMalloc), start);
        let single = replay.pass([Functions::of(&failing); 3], || ()).err();
        assert_eq!(single.is_some(), failing.failures() > 0);
        assert_eq!(failing.inner().counts().live_blocks, 0);
        failing.set(start);
        let threads = threaded.pass([&failing; 3]).err();
        assert_eq!(threads.map(|OutOfMemory { op }| op.size()), single.map(|e| e.op.size()));
        assert_eq!(failing.inner().counts().live_blocks, 0);
        if single.is_none() {
            break;
        }
        failures += 1;
    }
    assert!(failures > 50);
}

/// Remembers what the last freed block held.
struct Witness {
    freed: Cell<[usize; 2]>,
}

// SAFETY: it is the C library's allocator, and reads blocks of two words before it frees them.
unsafe impl Malloc for Witness {
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        LibcMalloc.malloc(size)
    }
    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        LibcMalloc.calloc(nelem, elsize)
    }
    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        // SAFETY: the caller's duties are those of `LibcMalloc`.
        unsafe { LibcMalloc.realloc(ptr, new_size) }
    }
    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        if let Some(block) = ptr {
            // SAFETY: the test's blocks are two words long and initialised.
            self.freed.set(unsafe { block.cast::<[usize; 2]>().read() });
        }
        // SAFETY: the caller's duties are those of `LibcMalloc`.
        unsafe { LibcMalloc.free(ptr) }
    }
}

#[rstest]
#[case(Op::malloc(0, 0, 16))]
#[case(Op::calloc(0, 0, 16))]
fn new_blocks_get_two_words(#[case] op: Op) {
    let witness = Witness { freed: Cell::new([0; 2]) };
    Replay::new(&[op]).pass([Functions::of(&witness); 3], || ()).expect("memory");
    assert_eq!(witness.freed.get(), [16, 16]);
}

/// Loads whose blocks wander: all calls are made, by the right number of threads, and nothing is left.
#[rstest]
#[case::larson(generate::larson(1, 3, 20_000), 3)]
#[case::mstress(generate::mstress(1, 4, 20_000), 4)]
#[case::xmalloc(generate::xmalloc(1, 2, 20_000), 2)]
#[case::cache_scratch(generate::cache_scratch(4, 20_000), 4)]
#[case::sh6bench(generate::sh6bench(2, 20_000), 2)]
#[case::one_thread(generate::xmalloc(1, 1, 1000), 1)]
#[case::nothing(vec![], 0)]
fn threads_make_every_call(#[case] events: Vec<Event>, #[case] threads: usize) {
    let replay = ThreadedReplay::new(&events);
    assert_eq!((replay.threads(), replay.calls()), (threads, events.len()));
    let counting = Counting::new(LibcMalloc);
    for pass in 1..=2 {
        replay.pass([&counting; 3]).expect("memory");
        let mallocs = events.iter().filter(|event| event.op.size() > 0).count();
        assert_eq!(counting.counts().malloc, pass * mallocs);
        assert_eq!(counting.counts().live_blocks, 0);
    }
}

#[test]
fn threads_stop_when_one_runs_out_of_memory() {
    let replay = ThreadedReplay::new(&generate::xmalloc(1, 4, 40_000));
    for start in [0, 1, 100, 5000] {
        let failing = FailAfter::new(Counting::new(LibcMalloc), start);
        replay.pass([&failing; 3]).expect_err("no memory");
        assert_eq!(failing.inner().counts().live_blocks, 0);
    }
}
