//! What befalls the process of a log, or its file: faults, limits, forks.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use malloc_api::testing::{alone, forked};
use malloc_api::{LibcMalloc, Malloc};
use malloc_trace::{CallLog, Domain, Op, Recorder, generate, run};
use pymem_sync::{ForkLock, Rank, hold_over_forks};
use rstest::rstest;

use super::{HEAD_BYTES, LogFile, NO_LIMIT, WINDOW_BYTES, logged, read};

/// How often a log of the process failed.
static FAILURES: AtomicUsize = AtomicUsize::new(0);

fn count_failure() {
    FAILURES.fetch_add(1, Relaxed);
}

/// Somebody cuts the file short between two calls: a fault for whoever writes to its pages.
#[rstest]
#[case::all_of_it(0)]
#[case::its_records(HEAD_BYTES)]
fn a_log_that_is_cut_short_ends_and_not_the_program(#[case] length: u64) {
    let name = match length {
        0 => "all_of_it",
        _ => "its_records",
    };
    let number = if length == 0 { 1 } else { 2 };
    let test = format!(
        "log::process::a_log_that_is_cut_short_ends_and_not_the_program::case_{number}_{name}"
    );
    alone(&test, || {
        let file = LogFile::new("short");
        let log = CallLog::create(&file.0, NO_LIMIT, count_failure).expect("a file");
        let recorder = Recorder::new(LibcMalloc, Domain::Raw, &log);
        run(&generate::random(1, 1000, 100), &recorder).expect("a correct allocator");
        let cut = File::options().write(true).open(&file.0).expect("a file");
        cut.set_len(length).expect("a shorter file");
        run(&generate::random(2, 100, 100), &recorder).expect("a correct allocator");
        assert_eq!(FAILURES.load(Relaxed), 1, "the first write shows it");
        run(&generate::random(3, 200_000, 100), &recorder).expect("a correct allocator");
        assert_eq!(FAILURES.load(Relaxed), 1);
        assert_eq!(fs::metadata(&file.0).expect("a file").len(), length);
    });
}

/// A signal that is none of the log's does what it would do without a log: the default ends the program, an ignored one does
/// nothing, and a handler is called.
#[test]
fn other_bus_errors_do_what_they_did() {
    use std::os::unix::process::ExitStatusExt;
    extern "C" fn exit_with_7(_signal: libc::c_int) {
        // SAFETY: no preconditions.
        unsafe { libc::_exit(7) };
    }
    const ACTION: &str = "PYMEM_TEST_ACTION";
    let name = "log::process::other_bus_errors_do_what_they_did";
    let handler = (exit_with_7 as extern "C" fn(libc::c_int)) as libc::sighandler_t;
    let actions = [
        ("default", libc::SIG_DFL, (None, Some(libc::SIGBUS))),
        ("ignore", libc::SIG_IGN, (Some(0), None)),
        ("handler", handler, (Some(7), None)),
    ];
    if let Some(asked) = std::env::var_os(ACTION) {
        let (_, action, _) = actions.into_iter().find(|action| asked == action.0).expect("one");
        // In place of Rust's own handler, which takes a signal that was sent for a stack overflow that was none.
        // SAFETY: a handler of one argument that does what a handler may, or none.
        unsafe { libc::signal(libc::SIGBUS, action) };
        let file = LogFile::new("raise");
        let _log = CallLog::create(&file.0, NO_LIMIT, count_failure).expect("a file");
        fs::remove_file(&file.0).expect("it was there");
        // SAFETY: no preconditions.
        unsafe { libc::raise(libc::SIGBUS) };
        return;
    }
    for (action, _, expected) in actions {
        let mut process = malloc_api::testing::test_process(name);
        let status = process.env(ACTION, action).status().expect("the test can start itself");
        assert_eq!((status.code(), status.signal()), expected, "{action}");
    }
}

/// The kernel ends a program that writes a file beyond the limit; the log stays below.
#[test]
fn a_limit_of_file_sizes_stops_the_log_and_not_the_program() {
    alone("log::process::a_limit_of_file_sizes_stops_the_log_and_not_the_program", || {
        let limit = libc::rlimit { rlim_cur: 3 << 19, rlim_max: 3 << 19 };
        // SAFETY: a filled limit; the process is the test's own.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) }, 0);
        let file = LogFile::new("limited");
        let log = CallLog::create(&file.0, NO_LIMIT, count_failure).expect("a file");
        let recorder = Recorder::new(LibcMalloc, Domain::Raw, &log);
        run(&generate::random(1, 100_000, 100), &recorder).expect("a correct allocator");
        let read = read(&file.0);
        assert_eq!(read.head.system_error, Some(libc::EFBIG));
        // A realloc has two records.
        let held = (WINDOW_BYTES / 32) as usize..=(WINDOW_BYTES / 16) as usize;
        assert!(held.contains(&read.events.len()) && read.head.dropped > 10_000);
        assert_eq!(FAILURES.load(Relaxed), 1);
    });
}

/// A log replaces a regular file, and refuses what is none.
#[test]
fn links_and_devices_are_refused() {
    let (file, target) = (LogFile::new("link"), LogFile::new("target"));
    fs::write(&target.0, "precious").expect("a writable folder");
    std::os::unix::fs::symlink(&target.0, &file.0).expect("a link");
    CallLog::create(&file.0, NO_LIMIT, || ()).expect_err("a link");
    CallLog::create(Path::new("/dev/null"), NO_LIMIT, || ()).expect_err("a device");
    assert_eq!(fs::read(&target.0).expect("the target"), b"precious");
    CallLog::create(&target.0, NO_LIMIT, || ()).expect("a regular file to replace");
    assert_eq!(fs::metadata(&target.0).expect("the log").len(), HEAD_BYTES);
}

/// While another thread records, the process forks: each child, and a child of that, has a log of its own calls.
#[test]
fn a_forked_child_goes_on_with_a_log_of_its_own() {
    alone("log::process::a_forked_child_goes_on_with_a_log_of_its_own", || {
        let file = LogFile::new("fork");
        let log = CallLog::create(&file.0, NO_LIMIT, count_failure).expect("a file");
        let log: &'static CallLog = Box::leak(Box::new(log));
        let lock = Box::leak(Box::new(ForkLock::new(Rank::Wrapper, log)));
        hold_over_forks(lock).expect("memory for a handler");
        let recorder: &'static _ = Box::leak(Box::new(Recorder::new(LibcMalloc, Domain::Raw, log)));
        let ops = generate::random(1, 500, 100);
        let is_over: &'static AtomicBool = Box::leak(Box::new(AtomicBool::new(false)));
        let other = std::thread::spawn(move || {
            while !is_over.load(Relaxed) {
                let block = recorder.malloc(4321);
                // SAFETY: (1) the block is live; (2) it is not used afterwards.
                unsafe { recorder.free(block) };
            }
        });
        for _ in 0..50 {
            let child = in_child(|| {
                let grandchild = in_child(|| assert!(recorder.malloc(7777).is_some()));
                let path = format!("{}.{grandchild}", file.0.display());
                assert_eq!(read(Path::new(&path)).ops(), [Op::malloc(0, Domain::Raw, 7777)]);
                fs::remove_file(path).expect("it was there");
                run(&ops, recorder).expect("a correct allocator");
                // A child without a call has no file.
                let idle = in_child(|| ());
                assert!(!Path::new(&format!("{}.{idle}", file.0.display())).exists());
            });
            let path = PathBuf::from(format!("{}.{child}", file.0.display()));
            let expected = logged(&format!("alone-{child}"), NO_LIMIT, &ops).ops();
            let sizes = |ops: Vec<Op>| ops.into_iter().map(Op::size).collect::<Vec<_>>();
            assert_eq!(sizes(read(&path).ops()), sizes(expected));
            fs::remove_file(path).expect("it was there");
        }
        is_over.store(true, Relaxed);
        other.join().expect("no panic");
        let own = read(&file.0);
        assert!(own.ops().iter().all(|op| [0, 4321].contains(&op.size())), "the parent's alone");
        assert_eq!((FAILURES.load(Relaxed), own.head.dropped), (0, 0));
    });
}

/// Runs `body` in a forked child, which must come to its end; the child's number.
fn in_child(body: impl FnOnce()) -> i32 {
    // SAFETY: 1: this process has one thread beside the runner's, which waits.
    let (child, status) = unsafe { forked(body) };
    assert!(status.success(), "a child ended with {status}");
    child
}

/// A child that cannot have its file runs on without a log, and its parent's is what it was.
#[test]
fn a_child_without_a_file_runs_on() {
    alone("log::process::a_child_without_a_file_runs_on", || {
        let file = LogFile::new("no-child");
        let log = CallLog::create(&file.0, NO_LIMIT, count_failure).expect("a file");
        let log: &'static CallLog = Box::leak(Box::new(log));
        let lock = Box::leak(Box::new(ForkLock::new(Rank::Wrapper, log)));
        hold_over_forks(lock).expect("memory for a handler");
        let recorder = Recorder::new(LibcMalloc, Domain::Raw, log);
        let block = recorder.malloc(1234);
        in_child(|| {
            let own = format!("{}.{}", file.0.display(), std::process::id());
            std::os::unix::fs::symlink(&file.0, &own).expect("a link");
            run(&generate::random(1, 500, 100), &recorder).expect("a correct allocator");
            assert_eq!(FAILURES.load(Relaxed), 1);
            fs::remove_file(own).expect("still a link");
        });
        // SAFETY: (1) the block is live; (2) it is not used afterwards.
        unsafe { recorder.free(block) };
        let expected = [Op::malloc(0, Domain::Raw, 1234), Op::free(0, Domain::Raw)];
        assert_eq!(read(&file.0).ops(), expected);
    });
}
