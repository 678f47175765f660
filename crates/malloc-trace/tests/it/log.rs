//! A call log becomes the trace of the program that ran, however that ended.

mod process;

use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use malloc_api::testing::{FailAfter, conformance};
use malloc_api::{LibcMalloc, Malloc};
use malloc_trace::{
    CallLog, Domain, Event, LogError, LogHead, LogReader, Op, Recorder, Recording, Replay,
    ThreadedReplay, Trace, Unread, encode, generate, run,
};
use rstest::rstest;

const HEAD_BYTES: u64 = 4096;
const WINDOW_BYTES: u64 = 1 << 20;
const NO_LIMIT: u64 = u64::MAX;

/// A program of every kind of operation. Its last takes the lowest slot that is free, as a log does.
const EVERY_KIND: [Op; 6] = [
    Op::malloc(0, Domain::Mem, 24),
    Op::calloc(1, Domain::Mem, 0),
    Op::realloc(0, Domain::Mem, 500),
    Op::realloc(2, Domain::Mem, 7),
    Op::free(0, Domain::Mem),
    Op::malloc(0, Domain::Mem, 100_000),
];

/// What is logged of [`fail_and_go_on`] in domain 2.
const WHAT_SUCCEEDED: [Op; 3] =
    [Op::malloc(0, Domain::Obj, 10), Op::realloc(0, Domain::Obj, 30), Op::free(0, Domain::Obj)];

/// Makes one block, fails in every way, and goes on with the block. `recorder` is over `failing`, which fails from the
/// second allocation on.
fn fail_and_go_on(recorder: &impl Malloc, failing: &FailAfter<LibcMalloc>) {
    let block = recorder.malloc(10);
    assert!(recorder.malloc(10).is_none() && recorder.calloc(1, 10).is_none());
    // SAFETY: (1) `None` is allowed and `block` is live; (2) a failure leaves the block.
    assert!(unsafe { recorder.realloc(None, 10) }.is_none());
    // SAFETY: as above.
    assert!(unsafe { recorder.realloc(block, 20) }.is_none());
    // SAFETY: (1) `None` is allowed; (2) there is no block.
    unsafe { recorder.free(None) };
    failing.disarm();
    // SAFETY: (1) the block is live; (2) only the answer is used afterwards.
    let block = unsafe { recorder.realloc(block, 30) };
    // SAFETY: (1) the block is live; (2) it is not used afterwards.
    unsafe { recorder.free(block) };
}

/// A file in the folder for tests, gone with the test.
struct LogFile(PathBuf);

impl LogFile {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("pymem-{}-{name}.log", std::process::id())))
    }
}

impl Drop for LogFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// What a log says.
struct Read {
    events: Vec<Event>,
    head: LogHead,
    unread: Unread,
}

impl Read {
    fn ops(&self) -> Vec<Op> {
        self.events.iter().map(|event| event.op).collect()
    }
}

fn read(path: &Path) -> Read {
    let file = BufReader::new(File::open(path).expect("a file"));
    let mut reader = LogReader::new(file).expect("a head");
    let events = reader.by_ref().map(|event| event.expect("an event")).collect();
    Read { events, head: reader.head(), unread: reader.unread() }
}

fn logged(name: &str, max_bytes: u64, ops: &[Op]) -> Read {
    let file = LogFile::new(name);
    let log = CallLog::create(&file.0, max_bytes, || ()).expect("a file");
    run(ops, &Recorder::new(LibcMalloc, Domain::Mem, &log)).expect("a correct allocator");
    read(&file.0)
}

#[test]
fn a_recorder_of_a_log_conforms() {
    let file = LogFile::new("conforms");
    let log = CallLog::create(&file.0, NO_LIMIT, || ()).expect("a file");
    conformance(&Recorder::new(LibcMalloc, Domain::Raw, &log));
}

/// A log that is longer than a window holds the program, each block in the lowest slot that is free.
#[rstest]
fn a_log_is_the_program_that_ran(#[values(1, 2)] seed: u64) {
    let once = logged(&format!("once-{seed}"), NO_LIMIT, &generate::random(seed, 100_000, 3000));
    assert!(once.events.len() > 100_000, "more than a window");
    assert_eq!(once.unread, Unread::default());
    assert_eq!(
        (once.head.dropped, once.head.reached_limit, once.head.system_error),
        (0, false, None)
    );
    let twice = logged(&format!("twice-{seed}"), NO_LIMIT, &once.ops());
    assert_eq!(once.ops(), twice.ops());
    let summary = run(&once.ops(), &LibcMalloc).expect("a correct allocator");
    assert_eq!((summary.failed, summary.live_blocks), (0, 0));
}

#[test]
fn sizes_domains_and_kinds_are_kept() {
    let read = logged("kinds", NO_LIMIT, &EVERY_KIND);
    assert_eq!(read.ops()[..6], EVERY_KIND);
    assert_eq!(Trace::new(read.ops()).slots, 3);
}

#[test]
fn a_recording_is_read_as_what_it_begins_with() {
    let file = LogFile::new("either");
    let log = CallLog::create(&file.0, NO_LIMIT, || ()).expect("a file");
    run(&EVERY_KIND, &Recorder::new(LibcMalloc, Domain::Mem, &log)).expect("a correct allocator");
    let bytes = fs::read(&file.0).expect("the log");
    let recording = Recording::read(&bytes[..]).expect("a log");
    let read = read(&file.0);
    assert_eq!((&recording.ops, recording.log), (&read.ops(), Some((read.head, read.unread))));
    let mut trace = Vec::new();
    encode(&mut trace, &Trace::new(read.ops())).expect("a trace");
    let of_trace = Recording::read(&trace[..]).expect("a trace");
    assert_eq!((&of_trace.ops, of_trace.log), (&read.ops(), None));
    for length in [0, 7, 8, 4095] {
        assert!(Recording::read(&bytes[..length]).is_err(), "{length} bytes of a log");
        assert!(Recording::read(&trace[..length.min(trace.len() - 1)]).is_err());
    }
}

#[test]
fn failures_are_not_logged_and_lose_no_block() {
    let file = LogFile::new("failures");
    let log = CallLog::create(&file.0, NO_LIMIT, || ()).expect("a file");
    let failing = FailAfter::new(LibcMalloc, 1);
    fail_and_go_on(&Recorder::new(&failing, Domain::Obj, &log), &failing);
    assert_eq!(read(&file.0).ops(), WHAT_SUCCEEDED);
}

/// An allocator whose large blocks come from another recorded one: only the call of the program is logged.
#[test]
fn nested_calls_are_logged_once() {
    let file = LogFile::new("nested");
    let log = CallLog::create(&file.0, NO_LIMIT, || ()).expect("a file");
    let obj = Recorder::new(Recorder::new(LibcMalloc, Domain::Raw, &log), Domain::Obj, &log);
    let block = obj.malloc(100);
    // SAFETY: (1) the block is live; (2) only the answer is used afterwards.
    let block = unsafe { obj.realloc(block, 200) };
    // SAFETY: (1) the block is live; (2) it is not used afterwards.
    unsafe { obj.free(block) };
    let expected = [
        Op::malloc(0, Domain::Obj, 100),
        Op::realloc(0, Domain::Obj, 200),
        Op::free(0, Domain::Obj),
    ];
    assert_eq!(read(&file.0).ops(), expected);
}

#[test]
fn a_log_stops_at_its_limit_and_counts_the_rest() {
    let ops: Vec<Op> = (0..100_000).map(|slot| Op::malloc(slot, Domain::Raw, 8)).collect();
    let read = logged("limit", HEAD_BYTES + WINDOW_BYTES, &ops);
    let held = (WINDOW_BYTES / 16) as usize;
    assert_eq!(read.events.len(), held);
    assert!(read.head.reached_limit);
    assert_eq!(read.head.dropped as usize, 2 * ops.len() - held);
}

#[test]
fn a_file_that_is_gone_stops_the_log_and_not_the_program() {
    let file = LogFile::new("gone");
    let log = CallLog::create(&file.0, NO_LIMIT, || ()).expect("a file");
    let recorder = Recorder::new(LibcMalloc, Domain::Raw, &log);
    fs::remove_file(&file.0).expect("it was there");
    fs::write(&file.0, "another file").expect("a writable folder");
    run(&generate::random(1, 1000, 100), &recorder).expect("a correct allocator");
    assert!(log.dropped() >= 1000);
    assert_eq!(fs::read(&file.0).expect("the other file"), b"another file");
}

#[test]
fn after_abandon_calls_are_only_served() {
    let file = LogFile::new("abandon");
    let log = CallLog::create(&file.0, NO_LIMIT, || ()).expect("a file");
    let recorder = Recorder::new(LibcMalloc, Domain::Raw, &log);
    let block = recorder.malloc(10);
    log.abandon();
    // SAFETY: (1) the block is live; (2) it is not used afterwards.
    unsafe { recorder.free(block) };
    assert_eq!((read(&file.0).ops(), log.dropped()), (vec![Op::malloc(0, Domain::Raw, 10)], 0));
}

/// Answers with the addresses that a test sets, behind which there is no memory.
struct Scripted(AtomicUsize);

impl Scripted {
    fn answer(&self) -> Option<NonNull<u8>> {
        NonNull::new(std::ptr::without_provenance_mut(self.0.load(Relaxed)))
    }
}

// SAFETY: not kept: the test uses no block as memory.
unsafe impl Malloc for Scripted {
    fn malloc(&self, _: usize) -> Option<NonNull<u8>> {
        self.answer()
    }
    fn calloc(&self, _: usize, _: usize) -> Option<NonNull<u8>> {
        self.answer()
    }
    unsafe fn realloc(&self, _: Option<NonNull<u8>>, _: usize) -> Option<NonNull<u8>> {
        self.answer()
    }
    unsafe fn free(&self, _: Option<NonNull<u8>>) {}
}

/// A block from before is unknown; one that was given up unseen ends where its address is handed out again.
#[test]
fn what_was_not_seen_is_counted_and_still_replays() {
    let file = LogFile::new("unseen");
    let log = CallLog::create(&file.0, NO_LIMIT, || ()).expect("a file");
    let recorder = Recorder::new(Scripted(AtomicUsize::new(0)), Domain::Raw, &log);
    let at = |address: usize| recorder.inner().0.store(address, Relaxed);
    let [first, second] = [0x1000, 0x2000]
        .map(|address| NonNull::new(std::ptr::without_provenance_mut::<u8>(address)));
    // SAFETY: `Scripted` has no duties, here and below.
    unsafe { recorder.free(first) };
    at(0x2000);
    // SAFETY: as above.
    unsafe { recorder.realloc(first, 5) };
    at(0x1000);
    assert_eq!((recorder.malloc(10), recorder.calloc(1, 20)), (first, first));
    at(0x2000);
    assert_eq!(recorder.malloc(30), second);
    // SAFETY: as above.
    unsafe { recorder.realloc(first, 40) };
    let read = read(&file.0);
    let expected = [
        Op::malloc(0, Domain::Raw, 10),
        Op::free(0, Domain::Raw),
        Op::calloc(0, Domain::Raw, 20),
        Op::malloc(1, Domain::Raw, 30),
        Op::free(1, Domain::Raw),
        Op::realloc(0, Domain::Raw, 40),
    ];
    assert_eq!(read.ops(), expected);
    assert_eq!((read.unread.unknown_blocks, read.unread.unseen_frees), (2, 2));
    run(&read.ops(), &LibcMalloc).expect("a correct allocator");
}

/// Blocks that wander between threads: the order of the log is one in which the calls can be made.
#[test]
fn threads_are_logged_in_an_order_that_replays() {
    let file = LogFile::new("threads");
    let log = CallLog::create(&file.0, NO_LIMIT, || ()).expect("a file");
    let recorder = Recorder::new(LibcMalloc, Domain::Obj, &log);
    let mut load = ThreadedReplay::new(generate::mstress(1, 4, 40_000));
    load.passes([&recorder; 3], 1).expect("memory and threads");
    let read = read(&file.0);
    assert_eq!(read.unread, Unread::default());
    let mut threads: Vec<u16> = read.events.iter().map(|event| event.thread).collect();
    threads.sort_unstable();
    threads.dedup();
    assert!(threads.len() == 4, "four threads: {threads:?}");
    assert!(read.head.threads > *threads.last().expect("threads"));
    let ops = read.ops();
    assert_eq!(Replay::new(&ops).calls(), ops.len());
    let summary = run(&ops, &LibcMalloc).expect("a correct allocator");
    assert_eq!(summary.live_blocks, 0);
}

#[test]
fn damaged_logs_are_errors() {
    let file = LogFile::new("damaged");
    let log = CallLog::create(&file.0, NO_LIMIT, || ()).expect("a file");
    run(&[Op::malloc(0, Domain::Raw, 8)], &Recorder::new(LibcMalloc, Domain::Raw, &log))
        .expect("a correct allocator");
    let good = fs::read(&file.0).expect("a file");
    let read = |bytes: &[u8]| {
        LogReader::new(bytes).and_then(|reader| reader.collect::<Result<Vec<_>, _>>())
    };
    assert_eq!(read(&good).expect("a log").len(), 2);
    assert!(matches!(read(&good[..100]), Err(LogError::TruncatedHead)));
    assert!(matches!(read(b"PYMTRC01 and so on"), Err(LogError::BadMagic { .. })));
    assert_eq!(read(&good[..4096 + 24]).expect("a log cut within its second record").len(), 1);
    for (at, byte) in [(4096, 8), (4096, 0xf), (4096 + 8, 3)] {
        let mut bad = good.clone();
        bad[at] |= byte;
        assert!(matches!(read(&bad), Err(LogError::BadRecord { index: 0, .. })), "{at} {byte}");
    }
}

/// A log whose head cannot be mapped is not created.
#[test]
#[cfg(target_pointer_width = "64")]
fn a_log_needs_memory_for_its_head() {
    use malloc_api::testing::{MemoryCall, Refusals};
    let file = LogFile::new("unmapped");
    let refusals = Refusals::of(&[MemoryCall::Mmap], 0, 1);
    let error = CallLog::create(&file.0, NO_LIMIT, || ()).expect_err("no memory");
    assert_eq!((error.raw_os_error(), refusals.failures()), (Some(libc::ENOMEM), 1));
    assert!(!file.0.exists());
}

/// A record has 46 bits for a size; what no trace can hold saturates.
#[test]
#[cfg(target_pointer_width = "64")]
fn sizes_saturate() {
    struct Boundless;
    // SAFETY: 1 to 5: nobody uses the blocks of this test.
    unsafe impl Malloc for Boundless {
        fn malloc(&self, _size: usize) -> Option<NonNull<u8>> {
            Some(NonNull::<u64>::dangling().cast())
        }
        fn calloc(&self, _nelem: usize, _elsize: usize) -> Option<NonNull<u8>> {
            None
        }
        unsafe fn realloc(&self, _ptr: Option<NonNull<u8>>, _size: usize) -> Option<NonNull<u8>> {
            None
        }
        unsafe fn free(&self, _ptr: Option<NonNull<u8>>) {}
    }
    let file = LogFile::new("sizes");
    let log = CallLog::create(&file.0, NO_LIMIT, || ()).expect("a file");
    let recorder = Recorder::new(Boundless, Domain::Raw, &log);
    for size in [(1 << 46) - 1, 1 << 46, usize::MAX] {
        let _ = recorder.malloc(size);
    }
    let sizes: Vec<_> = read(&file.0).events.iter().map(|event| event.op.size()).collect();
    // Blocks of one address: each ends the one before.
    assert_eq!(sizes, [Op::MAX_SIZE, 0, Op::MAX_SIZE, 0, Op::MAX_SIZE]);
}

/// However many logs there were, and windows of one: each gives back what the handler of faults keeps for it.
#[test]
fn a_log_may_follow_many_others() {
    let file = LogFile::new("many");
    for _ in 0..100 {
        let log = CallLog::create(&file.0, NO_LIMIT, || ()).expect("a file");
        run(&[Op::malloc(0, Domain::Raw, 8)], &Recorder::new(LibcMalloc, Domain::Raw, &log))
            .expect("a correct allocator");
        assert_eq!(log.dropped(), 0);
    }
}

/// Addresses that agree in all bits by which a table with a known hash finds them: reading takes no longer than with others.
#[test]
fn colliding_addresses_are_read_in_time() {
    const BLOCKS: u64 = 60_000;
    // The inverse of 2^64 divided by the golden ratio: multiples of it were once hashed to small numbers.
    const INVERSE: u64 = 0xf1de_83e1_9937_733d;
    let mut bytes = b"PYMLOG01".to_vec();
    bytes.resize(HEAD_BYTES as usize, 0);
    for k in 1..=BLOCKS {
        let block = (k << 44).wrapping_mul(INVERSE) & ((1 << 60) - 1);
        bytes.extend_from_slice(&(block << 4 | 1).to_le_bytes());
        bytes.extend_from_slice(&(8_u64 << 18).to_le_bytes());
    }
    let start = std::time::Instant::now();
    let reader = LogReader::new(&bytes[..]).expect("a head");
    assert_eq!(reader.filter(Result::is_ok).count() as u64, BLOCKS);
    assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
}
