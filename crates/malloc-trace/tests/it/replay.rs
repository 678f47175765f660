//! Replays make exactly the calls of the program, free everything, and touch memory as they say.

use std::cell::Cell;
use std::env;
use std::ptr::NonNull;

use malloc_api::testing::{Counting, FailAfter, test_process};
use malloc_api::{LibcMalloc, Malloc};
use malloc_trace::{Domain, Event, Op, Replay, ThreadedReplay, ThreadsError, generate, run};
use rstest::rstest;

#[rstest]
fn calls_are_those_of_the_model(#[values(1, 2, 3)] seed: u64) {
    let ops = generate::random(seed, 5000, 2000);
    let (modelled, replayed) = (Counting::new(LibcMalloc), Counting::new(LibcMalloc));
    let summary = run(&ops, &modelled).expect("a correct allocator");
    let mut replay = Replay::new(&ops);
    for pass in 1..=2 {
        let live = replay.pass([&replayed; 3]).expect("memory");
        assert_eq!(replayed.counts().live_blocks, summary.live_blocks);
        drop(live);
        let (modelled, replayed) = (modelled.counts(), replayed.counts());
        // A `realloc` of no block is a `malloc`.
        assert_eq!(replayed.malloc + replayed.realloc, pass * (modelled.malloc + modelled.realloc));
        assert_eq!(replayed.calloc, pass * modelled.calloc);
        assert_eq!((replayed.peak_blocks, replayed.live_blocks), (modelled.peak_blocks, 0));
    }
}

#[test]
fn blocks_stay_in_their_domain() {
    let domains = [0, 1, 2].map(|_| Counting::new(LibcMalloc));
    let ops = generate::random(5, 3000, 500);
    drop(Replay::new(&ops).pass(domains.each_ref()).expect("memory"));
    assert!(domains.iter().all(|domain| domain.counts().live_blocks == 0));
    assert!(domains.iter().all(|domain| domain.counts().malloc > 100));
    for domain in &domains {
        domain.reset_calls();
    }
    let mut threaded = ThreadedReplay::new(ops.into_iter().map(Event::from));
    threaded.passes(domains.each_ref(), 1).expect("memory and threads");
    assert!(domains.iter().all(|domain| domain.counts().live_blocks == 0));
    assert!(domains.iter().all(|domain| domain.counts().malloc > 100));
}

/// What a pass leaves live may be forgotten: then it is leaked, and the next pass hands no block of it to its own allocator.
#[test]
fn a_pass_that_is_never_over_leaves_the_next_one_sound() {
    let ops = generate::random(7, 2000, 500);
    let (first, second) = (Counting::new(LibcMalloc), Counting::new(LibcMalloc));
    let mut replay = Replay::new(&ops);
    std::mem::forget(replay.pass([&first; 3]).expect("memory"));
    let leaked = first.counts();
    assert!(leaked.live_blocks > 10);
    drop(replay.pass([&second; 3]).expect("memory"));
    assert_eq!(first.counts(), leaked);
    assert_eq!(second.counts().live_blocks, 0);
}

/// A lent replay is the same program in memory of the caller, and refuses operations that do not fit.
#[test]
fn a_replay_may_live_in_lent_memory() {
    let ops = generate::random(9, 2000, 500);
    let own = Replay::new(&ops);
    let leaked = |ops: &[Op]| -> &'static [Op] { Box::leak(ops.into()) };
    let table = |slots: usize| Box::leak(vec![None; slots].into_boxed_slice());
    let lend = |ops: &[Op], calls, slots| Replay::lent(leaked(ops), calls, table(slots));
    let mut lent = lend(own.ops(), own.calls(), own.slots()).expect("it fits");
    assert_eq!((lent.ops(), lent.calls(), lent.slots()), (own.ops(), own.calls(), own.slots()));
    let counting = Counting::new(LibcMalloc);
    drop(lent.pass([&counting; 3]).expect("memory"));
    assert_eq!(counting.counts().live_blocks, 0);

    for (domain, other) in Domain::ALL.into_iter().zip([Domain::Obj, Domain::Raw, Domain::Mem]) {
        let (malloc, free) = (Op::malloc(0, domain, 8), Op::free(0, domain));
        assert!(lend(&[malloc, free], 1, 1).is_some());
        for (name, ops, calls, slots) in [
            ("a slot outside the table", &[malloc, free][..], 2, 0),
            ("a block that stays", &[malloc], 1, 1),
            ("a block that is lost", &[malloc, malloc, free], 3, 1),
            ("a free of nothing", &[free], 1, 1),
            ("a realloc of nothing", &[Op::realloc(0, domain, 8), free], 2, 1),
            ("another domain's free", &[malloc, Op::free(0, other)], 2, 1),
            ("no bytes", &[Op::malloc(0, domain, 0), free], 2, 1),
            ("a call among the leftovers", &[malloc, free], 0, 1),
            ("more calls than operations", &[malloc, free], 3, 1),
        ] {
            assert!(lend(ops, calls, slots).is_none(), "{domain}: {name}");
        }
    }
}

/// Every failure point: the error names the operation, and everything is freed.
#[test]
fn out_of_memory_frees_everything() {
    let ops = generate::random(7, 150, 500);
    let mut replay = Replay::new(&ops);
    let mut threaded = ThreadedReplay::new(ops.iter().copied().map(Event::from));
    let mut failures = 0;
    for start in 0.. {
        let failing = FailAfter::new(Counting::new(LibcMalloc), start);
        let single = replay.pass([&failing; 3]).err();
        assert_eq!(single.is_some(), failing.failures() > 0);
        assert_eq!(failing.inner().counts().live_blocks, 0);
        failing.set(start);
        let threads = threaded.passes([&failing; 3], 1).err().map(|error| error.to_string());
        assert_eq!(threads, single.map(|error| error.to_string()));
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
#[case(Op::malloc(0, Domain::Raw, 16))]
#[case(Op::calloc(0, Domain::Raw, 16))]
#[case(Op::realloc(0, Domain::Raw, 16))]
fn new_blocks_get_two_words(#[case] op: Op) {
    let witness = Witness { freed: Cell::new([0; 2]) };
    drop(Replay::new(&[op]).pass([&witness; 3]).expect("memory"));
    assert_eq!(witness.freed.get(), [16, 1]);
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
    let mut replay = ThreadedReplay::new(events.iter().copied());
    assert_eq!((replay.threads(), replay.calls()), (threads, events.len()));
    let counting = Counting::new(LibcMalloc);
    let mallocs = events.iter().filter(|event| event.op.size() > 0).count();
    for passes in [1, 2] {
        counting.reset_calls();
        let times = replay.passes([&counting; 3], passes).expect("memory and threads");
        assert_eq!(times.len(), passes);
        assert_eq!(counting.counts().malloc, passes * mallocs);
        assert_eq!(counting.counts().live_blocks, 0);
    }
}

#[test]
fn threads_stop_when_one_runs_out_of_memory() {
    let mut replay = ThreadedReplay::new(generate::xmalloc(1, 4, 40_000));
    for start in [0, 1, 100, 5000] {
        let failing = FailAfter::new(Counting::new(LibcMalloc), start);
        let error = replay.passes([&failing; 3], 2).expect_err("no memory");
        assert!(matches!(error, ThreadsError::OutOfMemory(_)), "{error}");
        assert_eq!(failing.inner().counts().live_blocks, 0);
    }
    let counting = Counting::new(LibcMalloc);
    replay.passes([&counting; 3], 1).expect("memory and threads");
    assert_eq!(counting.counts().live_blocks, 0);
}

/// A thread that takes over a block, and cannot resize it, is the one that frees it.
#[test]
fn a_block_that_was_taken_over_is_freed_after_a_failure() {
    let event = |op, thread| Event { op, thread, nanos: 0 };
    let events = [
        event(Op::malloc(0, Domain::Obj, 8), 0),
        event(Op::realloc(0, Domain::Obj, 800), 1),
        event(Op::free(0, Domain::Obj), 0),
    ];
    let mut replay = ThreadedReplay::new(events);
    let failing = FailAfter::new(Counting::new(LibcMalloc), 1);
    let error = replay.passes([&failing; 3], 1).expect_err("no memory for the realloc");
    assert!(error.to_string().contains("realloc obj slot 0, 800 bytes"), "{error}");
    assert_eq!(failing.inner().counts().live_blocks, 0);
}

/// More threads than the memory of the process allows: an error, and no wait for threads that never come.
#[test]
fn too_many_threads_are_an_error() {
    // A thread that has started takes some more memory, without which it aborts. Where a stack of this size does not fit, there is some.
    const STACK_BYTES: &str = "67108864";
    if env::var("RUST_MIN_STACK").as_deref() != Ok(STACK_BYTES) {
        let mut process = test_process("replay::too_many_threads_are_an_error");
        assert!(process.env("RUST_MIN_STACK", STACK_BYTES).status().unwrap().success());
        return;
    }
    let events = (0..2000).map(|thread| Event {
        op: Op::malloc(u32::from(thread), Domain::Raw, 8),
        thread,
        nanos: 0,
    });
    let mut replay = ThreadedReplay::new(events);
    let limit = libc::rlimit { rlim_cur: 1 << 30, rlim_max: 1 << 30 };
    // SAFETY: a filled limit; the process is the test's own.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limit) }, 0);
    let counting = Counting::new(LibcMalloc);
    let error = replay.passes([&counting; 3], 1).expect_err("64 MiB of stack a thread");
    assert!(
        matches!(error, ThreadsError::Threads { started: 1..2000, wanted: 2000, .. }),
        "{error}"
    );
    assert_eq!(counting.counts().malloc, 0);
}
