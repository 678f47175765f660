//! A recording is the program that ran: checked, bounded, from several threads, and never in its own way.

use std::cell::RefCell;
use std::io::{self, Cursor, Seek, SeekFrom, Write};
use std::sync::{Arc, Mutex};

use malloc_api::testing::{Counting, FailAfter, conformance};
use malloc_api::{LibcMalloc, Malloc};
use malloc_trace::codec::{Reader, Version};
use malloc_trace::{
    Event, Op, Recorder, Recording, Replay, ThreadedReplay, Trace, TraceError, decode, generate,
    run,
};
use rstest::rstest;

use crate::calls::{EVERY_KIND, WHAT_SUCCEEDED, fail_and_go_on};

/// A sink that several owners see.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Cursor<Vec<u8>>>>);

impl Shared {
    fn bytes(&self) -> Vec<u8> {
        self.0.lock().expect("no panic").get_ref().clone()
    }
}

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic").write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Shared {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.0.lock().expect("no panic").seek(position)
    }
}

/// Runs `ops` through a recorder on domain 1 and gives the recorded trace.
fn record(ops: &[Op]) -> Trace {
    let file = Shared::default();
    let recording = Recording::new(file.clone(), Version::V1, 1 << 16).expect("a sink");
    let recorder = Recorder::new(LibcMalloc, 1, &recording);
    run(ops, &recorder).expect("a correct allocator");
    let recorded = recording.finish().expect("a sink");
    let trace = decode(&file.bytes()[..]).expect("a trace");
    assert_eq!((recorded.written, recorded.dropped), (trace.ops.len() as u64, 0));
    trace
}

#[test]
fn a_recorder_conforms() {
    let recording = Recording::new(Shared::default(), Version::V2, 100).expect("a sink");
    conformance(&Recorder::new(LibcMalloc, 0, &recording));
}

#[test]
fn records_the_program_that_ran() {
    let mut ops = EVERY_KIND;
    // The slot of a freed block is used again; what is left is freed in the order of the addresses.
    ops[5] = Op::malloc(3, 1, 100_000);
    let trace = record(&ops);
    assert_eq!(trace.ops[..6], EVERY_KIND);
    assert_eq!(trace.slots, 3);
    let mut frees = trace.ops[6..].to_vec();
    frees.sort_by_key(|op| op.slot());
    assert_eq!(frees, [0, 1, 2].map(|slot| Op::free(slot, 1)));
}

/// What is recorded of a recorded program is the same program.
#[rstest]
fn recording_a_recording_changes_nothing(#[values(1, 2, 3)] seed: u64) {
    let once = record(&generate::random(seed, 5000, 3000));
    let twice = record(&once.ops);
    assert_eq!(once, twice);
    run(&once.ops, &LibcMalloc).expect("a correct allocator");
}

#[test]
fn failures_are_not_recorded() {
    let file = Shared::default();
    let recording = Recording::new(file.clone(), Version::V1, 100).expect("a sink");
    let failing = FailAfter::new(LibcMalloc, 1);
    fail_and_go_on(&Recorder::new(&failing, 2, &recording), &failing);
    recording.finish().expect("a sink");
    assert_eq!(decode(&file.bytes()[..]).expect("a trace").ops, WHAT_SUCCEEDED);
}

#[test]
fn blocks_from_before_stay_unknown() {
    let file = Shared::default();
    let recording = Recording::new(file.clone(), Version::V1, 100).expect("a sink");
    let recorder = Recorder::new(LibcMalloc, 0, &recording);
    let (first, second) = (LibcMalloc.malloc(10), LibcMalloc.malloc(10));
    // SAFETY: (1) the block is live; (2) only the answer is used afterwards.
    let first = unsafe { recorder.realloc(first, 1000) };
    for block in [first, second] {
        // SAFETY: (1) the block is live; (2) it is not used afterwards.
        unsafe { recorder.free(block) };
    }
    let recorded = recording.finish().expect("a sink");
    assert_eq!((recorded.written, recorded.dropped), (0, 0));
}

#[test]
fn what_does_not_fit_is_counted() {
    let file = Shared::default();
    let recording = Recording::new(file.clone(), Version::V1, 3).expect("a sink");
    let recorder = Recorder::new(LibcMalloc, 0, &recording);
    let ops: Vec<Op> = (0..10).map(|slot| Op::malloc(slot, 0, 8)).collect();
    run(&ops, &recorder).expect("a correct allocator");
    assert_eq!(recording.dropped(), 7);
    let recorded = recording.finish().expect("a sink");
    assert_eq!((recorded.written, recorded.dropped), (6, 7));
    let trace = decode(&file.bytes()[..]).expect("a trace");
    assert_eq!((trace.ops.len(), trace.slots), (6, 3));
}

#[test]
fn flushing_makes_a_crash_harmless() {
    let file = Shared::default();
    let recording = Recording::new(file.clone(), Version::V2, 100).expect("a sink");
    let recorder = Recorder::new(LibcMalloc, 0, &recording);
    let block = recorder.malloc(10);
    assert!(recording.try_flush());
    assert_eq!(decode(&file.bytes()[..]).expect("a trace").ops, [Op::malloc(0, 0, 10)]);
    recording.abandon();
    // SAFETY: (1) the block is live; (2) it is not used afterwards.
    unsafe { recorder.free(block) };
    drop(recording);
    assert_eq!(decode(&file.bytes()[..]).expect("a trace").ops.len(), 1, "abandoned");
}

#[test]
fn after_the_end_calls_are_only_served() {
    let counting = Counting::new(LibcMalloc);
    let recording = Recording::new(Shared::default(), Version::V1, 10).expect("a sink");
    let recorder = Recorder::new(&counting, 0, &recording);
    assert_eq!(recording.finish().expect("a sink").written, 0);
    run(&generate::random(1, 100, 100), &recorder).expect("a correct allocator");
    assert!(counting.counts().malloc > 20);
    assert_eq!(recording.finish().expect("a sink").written, 0, "finishing twice is harmless");
    assert!(!recording.try_flush());
}

#[test]
fn a_full_disk_ends_the_recording() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::Error::from(io::ErrorKind::StorageFull))
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    impl Seek for Full {
        fn seek(&mut self, _: SeekFrom) -> io::Result<u64> {
            Ok(0)
        }
    }
    let recording = Recording::new(Full, Version::V1, 100_000).expect("the header is buffered");
    let recorder = Recorder::new(LibcMalloc, 0, &recording);
    run(&generate::random(1, 50_000, 100), &recorder).expect("a correct allocator");
    let error = recording.finish().expect_err("nothing could be written");
    assert!(matches!(error, TraceError::Io(_)), "{error}");
}

/// A sink that allocates from the recorded allocator must neither deadlock nor appear in the trace.
#[test]
fn the_sink_may_allocate_from_the_recorded_allocator() {
    thread_local! {
        static INSIDE: RefCell<Option<&'static dyn Malloc>> = const { RefCell::new(None) };
    }
    struct Greedy(Shared);
    impl Write for Greedy {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            INSIDE.with_borrow(|allocator| {
                if let Some(allocator) = allocator {
                    let block = allocator.malloc(bytes.len());
                    // SAFETY: (1) the block is live; (2) it is not used afterwards.
                    unsafe { allocator.free(block) };
                }
            });
            self.0.write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    impl Seek for Greedy {
        fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
            self.0.seek(position)
        }
    }
    let file = Shared::default();
    let recording = Recording::new(Greedy(file.clone()), Version::V1, 1 << 16).expect("a sink");
    let recording: &'static Recording<Greedy> = Box::leak(Box::new(recording));
    let recorder = Box::leak(Box::new(Recorder::new(LibcMalloc, 0, recording)));
    INSIDE.set(Some(recorder));
    let ops = generate::random(1, 30_000, 100);
    run(&ops, recorder).expect("a correct allocator");
    INSIDE.set(None);
    let recorded = recording.finish().expect("a sink");
    assert!(recorded.written >= 3 * 8192, "three buffers were written: {recorded:?}");
    assert_eq!(recorded.dropped, 0, "what the sink asks for is no call of the program");
    let trace = decode(&file.bytes()[..]).expect("a trace");
    assert!(trace.ops.iter().all(|op| op.size() <= 100));
    run(&trace.ops, &LibcMalloc).expect("a correct allocator");
}

/// Blocks that wander between threads: each event is a call that one thread really made, in an order that replays.
#[test]
fn threads_are_recorded_in_an_order_that_replays() {
    let file = Shared::default();
    let recording = Recording::new(file.clone(), Version::V2, 1 << 16).expect("a sink");
    let recorder = Recorder::new(LibcMalloc, 2, &recording);
    let load = ThreadedReplay::new(&generate::mstress(1, 4, 40_000));
    load.pass([&recorder; 3]).expect("memory");
    let recorded = recording.finish().expect("a sink");
    assert_eq!(recorded.dropped, 0);

    let bytes = file.bytes();
    let events: Result<Vec<Event>, _> = Reader::new(&bytes[..]).expect("a header").collect();
    let events = events.expect("events");
    let mut threads: Vec<u16> = events.iter().map(|event| event.thread).collect();
    threads.sort_unstable();
    threads.dedup();
    assert!((4..=5).contains(&threads.len()), "four threads and the one that frees the rest");
    assert!(events.is_sorted_by_key(|event| event.nanos));
    // No operation meets a slot in the wrong state: the calls that a replay makes are the recorded ones.
    let ops: Vec<Op> = events.iter().map(|event| event.op).collect();
    assert_eq!(Replay::new(&ops).calls(), ops.len());
    let summary = run(&ops, &LibcMalloc).expect("a correct allocator");
    assert_eq!(summary.live_blocks, 0);
}
