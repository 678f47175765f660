//! Delayed free: nothing is freed under a reader, and what waits stays bounded.

use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::thread;

use malloc_api::testing::{alone, resident_bytes};
use mimalloc_heaps::{HeapKind, InterpreterHeaps, Limits, ThreadHeaps};

use crate::threads::{check, fill};
use crate::visit::{blocks_of, quiet_world};

fn retire(heaps: &ThreadHeaps, block: NonNull<u8>) {
    // SAFETY: (1) live, and freed by nobody else; (2), (3) no reader knows of it, or the test says otherwise.
    unsafe { heaps.free_delayed(Some(block)) }.expect("memory for the queue");
}

#[test]
fn a_block_waits_for_every_attached_thread_and_no_longer() {
    let interpreter = InterpreterHeaps::new().unwrap();
    let heaps = interpreter.attach().unwrap();
    let (reader_is_there, reader_may_go) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            let _reader = interpreter.attach().unwrap();
            reader_is_there.store(true, Ordering::Relaxed);
            while !reader_may_go.load(Ordering::Relaxed) {
                thread::yield_now();
            }
        });
        while !reader_is_there.load(Ordering::Relaxed) {
            thread::yield_now();
        }
        let block = heaps.malloc(HeapKind::Object, 100).unwrap();
        retire(&heaps, block);
        heaps.quiescent();
        assert_eq!(heaps.flush_delayed(), 0, "the reader has seen nothing yet");
        assert_eq!((heaps.pending_delayed().items, heaps.should_process()), (1, true));
        assert!(heaps.pending_delayed().bytes >= 100);
        assert_eq!(blocks_of(&interpreter, HeapKind::Object), 1, "a waiting block is live");
        reader_may_go.store(true, Ordering::Relaxed);
    });
    heaps.quiescent();
    assert_eq!(heaps.process_delayed(), 1);
    assert_eq!(blocks_of(&interpreter, HeapKind::Object), 0);
}

#[test]
fn nobody_waits_for_an_offline_thread() {
    let interpreter = InterpreterHeaps::new().unwrap();
    let heaps = interpreter.attach().unwrap();
    retire(&heaps, heaps.malloc(HeapKind::Mem, 8).unwrap());
    let freed = heaps.offline(|| {
        heaps.offline(|| ());
        heaps.flush_delayed()
    });
    assert_eq!(freed, 1);
    retire(&heaps, heaps.malloc(HeapKind::Mem, 8).unwrap());
    assert_eq!(heaps.flush_delayed(), 0, "online again, and not quiescent since");
    heaps.quiescent();
    assert_eq!(heaps.process_delayed(), 1);
}

#[test]
fn a_stopped_world_frees_everything() {
    let interpreter = InterpreterHeaps::new().unwrap();
    let heaps = interpreter.attach().unwrap();
    // SAFETY: (1) `None` is allowed.
    assert_eq!(unsafe { heaps.free_delayed(None) }, Ok(()));
    for _ in 0..10 {
        retire(&heaps, heaps.malloc(HeapKind::Gc, 50).unwrap());
    }
    let statistics = interpreter.statistics(&quiet_world());
    assert_eq!(statistics.delayed_blocks, 10);
    // Less than the blocks take where mimalloc is built to find overruns: the padding is not usable.
    assert!((500..=statistics.total().block_bytes).contains(&statistics.delayed_bytes));
    assert_eq!(interpreter.reclaim_delayed(&quiet_world()), 10);
    assert_eq!(blocks_of(&interpreter, HeapKind::Gc), 0);
}

#[test]
fn the_blocks_of_an_exiting_thread_are_freed_by_another() {
    let interpreter = InterpreterHeaps::new().unwrap();
    let heaps = interpreter.attach().unwrap(); // holds the goals back
    thread::scope(|scope| {
        scope.spawn(|| {
            let heaps = interpreter.attach().unwrap();
            for _ in 0..300 {
                retire(&heaps, heaps.malloc(HeapKind::Object, 24).unwrap());
            }
        });
    });
    assert_eq!(blocks_of(&interpreter, HeapKind::Object), 300);
    heaps.quiescent();
    assert_eq!(heaps.process_delayed(), 300);
    assert_eq!(blocks_of(&interpreter, HeapKind::Object), 0);
}

#[test]
fn limits_are_the_interpreters_and_then_the_threads() {
    let interpreter = InterpreterHeaps::new().unwrap();
    let limits = Limits { items: 3, bytes: 1 << 30 };
    interpreter.set_delayed_limits(limits);
    let heaps = interpreter.attach().unwrap();
    assert_eq!(heaps.delayed_limits(), limits);
    heaps.set_delayed_limits(Limits::default());
    assert_eq!(heaps.delayed_limits(), Limits { items: 127, bytes: 1 << 20 });
    for _ in 0..127 {
        retire(&heaps, heaps.malloc(HeapKind::Object, 24).unwrap());
    }
    assert!(!heaps.should_process(), "a goal before the limit");
    retire(&heaps, heaps.malloc(HeapKind::Object, 24).unwrap());
    assert!(heaps.should_process(), "no goal past the limit");
}

/// Readers follow a pointer that a writer swaps, and check every byte behind it.
///
/// It ends when enough was read and freed, however the threads are scheduled.
#[test]
fn readers_never_see_a_freed_block() {
    const BYTES: usize = 256;
    const CHECKS: usize = 20_000;
    const FREES: usize = 20_000;
    /// Past so many waiting blocks the writer lets the readers run.
    const WAITING: usize = 1000;
    let interpreter = InterpreterHeaps::new().unwrap();
    let shared = AtomicPtr::new(ptr::null_mut::<u8>());
    let checked = [const { AtomicUsize::new(0) }; 2];
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let readers = checked.each_ref().map(|checked| {
            let (interpreter, shared, stop) = (&interpreter, &shared, &stop);
            scope.spawn(move || {
                let heaps = interpreter.attach().unwrap();
                while !stop.load(Ordering::Relaxed) {
                    match NonNull::new(shared.load(Ordering::Acquire)) {
                        Some(block) => {
                            // SAFETY: retired blocks stay until this thread is quiescent.
                            let tag = unsafe { block.read() };
                            check(block, BYTES, tag);
                            checked.fetch_add(1, Ordering::Relaxed);
                        }
                        None => thread::yield_now(),
                    }
                    heaps.quiescent();
                }
            })
        });
        let heaps = interpreter.attach().unwrap();
        let mut freed = 0;
        let mut tag = 0_u8;
        while freed < FREES || checked.iter().any(|n| n.load(Ordering::Relaxed) < CHECKS) {
            if readers.iter().any(|reader| reader.is_finished()) {
                break; // it saw a freed block, and the scope will say so
            }
            tag = tag.wrapping_add(1);
            let block = heaps.malloc(HeapKind::Mem, BYTES).unwrap();
            fill(block, BYTES, tag);
            if let Some(old) = NonNull::new(shared.swap(block.as_ptr(), Ordering::AcqRel)) {
                retire(&heaps, old);
            }
            heaps.quiescent();
            if heaps.should_process() {
                freed += heaps.process_delayed();
            }
            while heaps.pending_delayed().items > WAITING {
                thread::yield_now();
                freed += heaps.process_delayed();
            }
        }
        stop.store(true, Ordering::Relaxed);
        if let Some(last) = NonNull::new(shared.load(Ordering::Acquire)) {
            retire(&heaps, last);
        }
    });
    let heaps = interpreter.attach().unwrap();
    heaps.flush_delayed();
    heaps.quiescent();
    heaps.process_delayed();
    assert_eq!(blocks_of(&interpreter, HeapKind::Mem), 0);
}

/// CPython issue 132519: one thread builds buffers of 3 MB, another's resizes free them delayed, for ever. Held: 6.7 GB.
#[test]
fn retired_list_buffers_stay_under_64_mib() {
    alone("delayed::retired_list_buffers_stay_under_64_mib", || {
        const BYTES: usize = 3_000_000;
        const BUFFERS: usize = 1000;
        let interpreter = InterpreterHeaps::new().unwrap();
        let current = AtomicPtr::new(ptr::null_mut::<u8>());
        let done = AtomicBool::new(false);
        let start = resident_bytes();
        let mut peak = 0;
        thread::scope(|scope| {
            // The builder publishes one buffer after the other, and reads the one that is there.
            scope.spawn(|| {
                let heaps = interpreter.attach().unwrap();
                let mut built = 0;
                while built < BUFFERS {
                    if current.load(Ordering::Acquire).is_null() {
                        let buffer = heaps.malloc(HeapKind::Mem, BYTES).unwrap();
                        fill(buffer, BYTES, 1);
                        current.store(buffer.as_ptr(), Ordering::Release);
                        built += 1;
                    } else {
                        thread::yield_now();
                    }
                    heaps.quiescent();
                    if heaps.should_process() {
                        heaps.process_delayed();
                    }
                }
                done.store(true, Ordering::Release);
            });
            let heaps = interpreter.attach().unwrap();
            let mut retired = 0;
            while retired < BUFFERS {
                if let Some(buffer) = NonNull::new(current.swap(ptr::null_mut(), Ordering::AcqRel))
                {
                    retire(&heaps, buffer);
                    retired += 1;
                    peak = peak.max(resident_bytes().saturating_sub(start));
                } else {
                    thread::yield_now();
                }
                heaps.quiescent();
                if heaps.should_process() {
                    heaps.process_delayed();
                }
            }
        });
        println!(
            "held at most {} MiB beside {} GB retired",
            peak >> 20,
            BYTES * BUFFERS / 1_000_000_000
        );
        assert!(peak < 64 << 20, "held {} MiB", peak >> 20);
    });
}
