//! What heaps do without memory: each memory call of mimalloc refused, and each allocation of the crate's own records.
//!
//! A program of its own, for it takes the place of the C library's functions. Each refusal of a system call is met by a child
//! of its own, as the first calls of a process are made once.
#![cfg(all(target_os = "linux", target_pointer_width = "64"))]

use std::ptr::NonNull;

use malloc_api::Malloc;
use malloc_api::testing::{GlobalFailAfter, MemoryCall, Refusals, test_process};
use malloc_trace::{ShadowModel, generate};
use mimalloc_heaps::{HeapError, HeapKind, InterpreterHeaps, ThreadHeaps, ThreadMalloc};
use rstest::rstest;

malloc_api::refuse_memory_calls!();

const VARIABLE: &str = "MIMALLOC_HEAPS_TEST_REFUSAL";

#[global_allocator]
static ALLOCATOR: GlobalFailAfter = GlobalFailAfter;

fn free(heaps: &ThreadHeaps, block: NonNull<u8>) {
    // SAFETY: (1) live and (2) not used afterwards.
    unsafe { heaps.free(Some(block)) };
}

/// Allocates and frees a block.
fn check(heaps: ThreadHeaps) {
    let block = heaps.malloc(HeapKind::Object, 100).expect("memory");
    free(&heaps, block);
}

/// The documented error at each allocation of `attach`, after which the thread can attach.
#[test]
fn an_attach_without_memory_is_an_error() {
    let interpreter = InterpreterHeaps::new().unwrap();
    // More than the first threads' slots, so that registration allocates too.
    let mut failures = [0; 2];
    std::thread::scope(|scope| {
        let (to_go, done) = std::sync::mpsc::channel::<()>();
        let done = std::sync::Arc::new(std::sync::Mutex::new(done));
        let (to_count, counted) = std::sync::mpsc::channel();
        for _ in 0..8 {
            let (interpreter, done) = (&interpreter, done.clone());
            let to_count = to_count.clone();
            scope.spawn(move || {
                let _heaps = interpreter.attach().unwrap();
                to_count.send(()).unwrap();
                drop(done.lock().map(|done| done.recv()));
            });
        }
        (0..8).for_each(|_| counted.recv().unwrap());
        // The slots that the first round made are there in the second.
        for round in &mut failures {
            while let Err(error) = GlobalFailAfter::with(*round, || interpreter.attach().map(check))
            {
                assert_eq!(error, HeapError::OutOfMemory);
                *round += 1;
            }
        }
        drop(to_go);
    });
    assert_eq!(failures, [2, 1], "slots and a queue, then a queue");
}

/// The documented error at each allocation of a queue: the block comes back live, and later all of them are freed.
#[test]
fn a_delayed_free_without_memory_gives_the_block_back() {
    let interpreter = InterpreterHeaps::new().unwrap();
    for count in 0.. {
        // Whose queue has no room yet.
        let heaps = interpreter.attach().unwrap();
        let blocks: Vec<_> = (0..40).filter_map(|_| heaps.malloc(HeapKind::Gc, 64)).collect();
        let mut refused = Vec::with_capacity(blocks.len());
        GlobalFailAfter::with(count, || {
            for &block in &blocks {
                // SAFETY: (1) live, and freed by nobody else; (2), (3) no reader knows of it.
                refused.extend(unsafe { heaps.free_delayed(Some(block)) }.err());
            }
        });
        let is_last = refused.is_empty();
        assert_eq!(heaps.pending_delayed().items, blocks.len() - refused.len());
        for block in refused {
            // SAFETY: a live block of 64 bytes.
            unsafe { block.write_bytes(1, 64) };
            // SAFETY: as above.
            assert_eq!(unsafe { heaps.free_delayed(Some(block)) }, Ok(()));
        }
        assert_eq!(heaps.offline(|| heaps.flush_delayed()), blocks.len(), "{count}");
        assert_eq!(heaps.pending_delayed().items, 0);
        if is_last {
            assert!(count >= 1, "the queue allocates {count} times");
            return;
        }
    }
}

/// A program in fresh heaps; returns the requests that got no memory, or why there are no heaps.
fn program() -> Result<usize, HeapError> {
    let interpreter = InterpreterHeaps::new()?;
    let heaps = interpreter.attach()?;
    let failed = heaps.enter(|| {
        let kinds = [ThreadMalloc::OBJECT, ThreadMalloc::MEM, ThreadMalloc::CURRENT];
        let mut model = ShadowModel::new([&kinds[0] as &dyn Malloc, &kinds[1], &kinds[2]]);
        for op in generate::random(31, 150, 9_000) {
            model.step(op).expect("no fault");
        }
        model.check_all().expect("no live block has changed");
        let failed = model.summary().failed;
        model.free_all().expect("no fault");
        failed
    });
    let large = heaps.malloc(HeapKind::Mem, 40 << 20);
    if let Some(block) = large {
        // SAFETY: the first byte of a live block.
        unsafe { block.write(1) };
        // SAFETY: (1) live, and freed by nobody else; (2), (3) no reader knows of it.
        let queued = unsafe { heaps.free_delayed(Some(block)) };
        assert_eq!((queued, heaps.offline(|| heaps.flush_delayed())), (Ok(()), 1));
    }
    Ok(failed + usize::from(large.is_none()))
}

/// What a child runs; in the parent nothing is refused.
#[test]
fn child() {
    let words = std::env::var(VARIABLE).unwrap_or_else(|_| String::from("0;0"));
    let (start, stop) = words.split_once(';').expect("two numbers");
    let (start, stop) = (start.parse().unwrap(), stop.parse().unwrap());
    let refusals = Refusals::of(&MemoryCall::ALL, start, stop);
    let outcome = match program() {
        Ok(failed) => failed.to_string(),
        Err(HeapError::OutOfMemory) => String::from("no"),
        Err(error) => panic!("{error}"),
    };
    let (calls, failures) = (refusals.calls(), refusals.failures());
    drop(refusals);
    println!("\n{calls} calls, {failures} failures, {outcome} requests");
    assert_eq!(program(), Ok(0), "the system gives again");
}

/// Runs the child; returns its calls, how many of them failed, and the requests that got no memory, if there were heaps.
fn run(arenas: &str, start: usize, stop: usize) -> (usize, usize, Option<usize>) {
    let output = test_process("child")
        .env(VARIABLE, format!("{start};{stop}"))
        .env("MIMALLOC_DISALLOW_ARENA_ALLOC", arenas)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{start};{stop}: {:?} {text}{errors}", output.status);
    let counts = text.lines().find_map(|line| {
        let (calls, rest) = line.strip_suffix(" requests")?.split_once(" calls, ")?;
        let (failures, requests) = rest.split_once(" failures, ")?;
        Some((calls.parse().ok()?, failures.parse().ok()?, requests.parse().ok()))
    });
    counts.expect("the child tells its counts")
}

/// One call refused, and every one from a turn on: an error or null, and no harm. Pages come from one arena, or each from the
/// system.
#[rstest]
fn each_refusal_is_survived(
    #[values("0", "1")] arenas: &str,
    #[values(false, true)] lasting: bool,
) {
    let mut missed = 0;
    for start in 0.. {
        let stop = if lasting { usize::MAX } else { start + 1 };
        let (calls, failures, requests) = run(arenas, start, stop);
        missed += usize::from(requests != Some(0));
        if failures == 0 {
            println!("{calls} calls, {missed} of them are missed");
            assert!(calls >= 3 && (missed > 0 || !lasting), "{calls} calls, {missed} missed");
            return;
        }
    }
}
