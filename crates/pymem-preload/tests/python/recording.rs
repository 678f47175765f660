//! Programs whose calls are logged: they do what they did, and the log is theirs, however they end.

use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};

use malloc_trace::{LogHead, LogReader, Op, OpKind, Unread, run_domains};
use pymem_domains::{AllocatorName, Build, Domain, Domains, Profile, Version};
use rstest::rstest;

use crate::process::{
    few, free_threaded, interpreters, is_newest, plain, preloaded, python, run, succeed,
};

/// Objects of all sizes, threads whose blocks wander, and a child with a log of its own.
const PROGRAM: &str = r"
import json, os, queue, sys, threading, warnings
warnings.simplefilter('ignore')
work = queue.Queue()
def make():
    for i in range(300):
        work.put([bytes(n) for n in range(i % 700)])
    work.put(None)
maker = threading.Thread(target=make)
maker.start()
while (item := work.get()) is not None:
    item.extend([bytearray(1000 + len(item))] * 3)
    item[-1].extend(b'x' * 5000)
maker.join()
child = os.fork()
if child == 0:
    waste = [object() for _ in range(50_000)]
    os._exit(3)
print(os.waitpid(child, 0)[1] >> 8, json.dumps({str(i): i for i in range(100)}))
print([name for name in os.environ if name.startswith('PYMEM')], open(os.devnull).fileno())
";

/// What a log says, and whether its records make sense.
struct Log {
    ops: Vec<Op>,
    head: LogHead,
    unread: Unread,
}

fn read(path: &Path) -> Log {
    let file = BufReader::new(File::open(path).expect("the log"));
    let mut reader = LogReader::new(file).expect("a head");
    let ops = reader.by_ref().map(|event| event.expect("an event").op).collect();
    Log { ops, head: reader.head(), unread: reader.unread() }
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("calls.log");
    (folder, path)
}

/// A log of [`PROGRAM`] in the row that is every interpreter's default.
fn recorded() -> Vec<Op> {
    let interpreter = interpreters().last().expect("an interpreter");
    let (_folder, path) = folder();
    let mut command = preloaded(&interpreter.path);
    succeed(command.env("PYMEM_TRACE", &path).args(["-c", PROGRAM]));
    read(&path).ops
}

#[test]
fn a_recorded_program_does_the_same_in_every_row() {
    for interpreter in few() {
        let expected = succeed(plain(&interpreter.path).args(["-c", PROGRAM]));
        // A log is the work of the rows and of the interpreter, and not of each pair.
        let all = is_newest(interpreter);
        let rows = interpreter.rows().filter(|row| all || matches!(*row, "default" | "debug"));
        for row in rows {
            let (_folder, path) = folder();
            let mut command = python(&interpreter.path, row);
            let output = succeed(command.env("PYMEM_TRACE", &path).args(["-c", PROGRAM]));
            assert_eq!(output, expected, "{interpreter} with {row}");
            let Log { ops, head, unread } = read(&path);
            assert!(ops.len() > 100_000, "{interpreter} with {row}: {}", ops.len());
            assert_eq!((head.dropped, head.reached_limit, head.system_error), (0, false, None));
            assert_eq!(unread.unknown_blocks, 0, "{interpreter} with {row}");
            assert!(head.threads >= 2, "{interpreter} with {row}");
            for domain in Domain::ALL {
                assert!(ops.iter().any(|op| op.domain() == domain), "{interpreter}: {domain}");
            }
        }
    }
}

/// The recorded program, with every block checked at every step, through every row of the table.
#[test]
fn a_recorded_program_replays_without_a_fault_in_every_row() {
    let ops = recorded();
    let mut rows = 0;
    for build in [Build::Gil, Build::FreeThreaded] {
        let profile = Profile::new(Version::V3_14, build, true, true, false).expect("a profile");
        for name in AllocatorName::ALL.into_iter().filter(|name| !name.is_relative()) {
            let Ok(domains) = Domains::new(profile, Some(name)) else { continue };
            domains.start();
            let [raw, mem, obj] = Domain::ALL.map(|domain| domains.get(domain));
            let summary = run_domains(&ops, [&raw, &mem, &obj])
                .unwrap_or_else(|fault| panic!("{build:?}, {name}: {fault}"));
            assert_eq!((summary.ops, summary.failed), (ops.len(), 0), "{build:?}, {name}");
            rows += 1;
        }
    }
    assert_eq!(rows, 6 + 2, "six rows with the GIL, two without");
}

/// A block above the pools' sizes is the C library's, and still one call.
#[test]
fn a_large_object_is_one_call() {
    for interpreter in interpreters() {
        let (_folder, path) = folder();
        let mut command = preloaded(&interpreter.path);
        succeed(command.env("PYMEM_TRACE", &path).args(["-c", "x = bytes(123_457)"]));
        let ops = read(&path).ops;
        let large = |op: &&Op| op.kind() != OpKind::Free && (123_457..123_600).contains(&op.size());
        assert_eq!(ops.iter().filter(large).count(), 1, "{interpreter}");
    }
}

/// Whatever ends the process, the calls until then are there.
#[rstest]
#[case("os._exit(7)", Some(7), None)]
#[case("os.abort()", None, Some(libc::SIGABRT))]
#[case("ctypes.string_at(0)", None, Some(libc::SIGSEGV))]
#[case("os.kill(os.getpid(), signal.SIGKILL)", None, Some(libc::SIGKILL))]
#[case("faulthandler._fatal_error_c_thread()", None, Some(libc::SIGABRT))]
#[case("raise SystemExit(5)", Some(5), None)]
fn the_log_is_complete_after(
    #[case] end: &str,
    #[case] status: Option<i32>,
    #[case] signal: Option<i32>,
) {
    let program = format!(
        "import ctypes, faulthandler, os, signal\nlast = [b'x' * 777_777 for _ in range(7)]\n{end}\n"
    );
    for interpreter in few() {
        let (_folder, path) = folder();
        let mut command = preloaded(&interpreter.path);
        let outcome = run(command.env("PYMEM_TRACE", &path).args(["-c", &program]));
        assert_eq!(
            (outcome.status, outcome.signal),
            (status, signal),
            "{interpreter}: {outcome:?}"
        );
        let ops = read(&path).ops;
        let last = |op: &&Op| op.kind() != OpKind::Free && (777_777..777_900).contains(&op.size());
        assert!(ops.iter().filter(last).count() >= 7, "{interpreter}: {end}");
    }
}

#[test]
fn a_log_at_its_limit_says_what_is_missing() {
    let interpreter = &interpreters()[0];
    let (_folder, path) = folder();
    let mut command = preloaded(&interpreter.path);
    command.env("PYMEM_TRACE", &path).env("PYMEM_TRACE_LIMIT", "2000000");
    succeed(command.args(["-c", "x = [bytes(i % 100) for i in range(200_000)]"]));
    let log = read(&path);
    assert!(fs::metadata(&path).expect("the log").len() <= 2_000_000);
    assert!((20_000..=(1 << 20) / 16).contains(&log.ops.len()), "{}", log.ops.len());
    assert!(log.head.reached_limit && log.head.dropped > 100_000, "{:?}", log.head);
}

#[rstest]
#[case("PYMEM_TRACE", "/no/such/folder/calls.log", "No such file")]
#[case("PYMEM_TRACE_LIMIT", "2T", "is no number of bytes")]
fn a_log_that_cannot_be_had_is_refused(#[case] name: &str, #[case] value: &str, #[case] why: &str) {
    for interpreter in interpreters() {
        let mut command = preloaded(&interpreter.path);
        let outcome = run(command.env(name, value).args(["-c", "print(1)"]));
        assert_eq!((outcome.status, outcome.stdout.as_str()), (Some(1), ""), "{interpreter}");
        assert!(outcome.stderr.starts_with(&format!("pymem-preload: {name}: ")), "{outcome:?}");
        assert!(outcome.stderr.contains(why), "{outcome:?}");
    }
}

#[test]
fn a_free_threaded_program_is_logged_too() {
    for interpreter in free_threaded() {
        let (_folder, path) = folder();
        let mut command = preloaded(&interpreter.path);
        succeed(command.env("PYMEM_TRACE", &path).args(["-c", "x = bytes(123_457)"]));
        assert!(read(&path).ops.len() > 10_000, "{interpreter}");
    }
}

/// A forked child's calls are in a file of its own; a child that executes another program has that program's log.
#[test]
fn a_child_has_a_log_of_its_own() {
    const FORK: &str = r"
import os
child = os.fork()
if child == 0:
    x = bytes(123_457)
    os._exit(0)
os.waitpid(child, 0)
x = bytes(234_567)
print(child)
";
    let has = |path: &Path, size: usize| {
        let sizes = size..size + 150;
        read(path).ops.iter().any(|op| op.kind() != OpKind::Free && sizes.contains(&op.size()))
    };
    for interpreter in interpreters() {
        let (_folder, path) = folder();
        let mut command = preloaded(&interpreter.path);
        let child = succeed(command.env("PYMEM_TRACE", &path).args(["-c", FORK]));
        let own = PathBuf::from(format!("{}.{}", path.display(), child.trim()));
        assert_eq!((has(&own, 123_457), has(&own, 234_567)), (true, false), "{interpreter}");
        assert_eq!((has(&path, 123_457), has(&path, 234_567)), (false, true), "{interpreter}");
    }
}

/// Whatever others do to the file, the program goes on, and says one line.
#[rstest]
#[case::cut_short("open(path, 'w').close()")]
#[case::cut_to_its_head("os.truncate(path, 4096)")]
#[case::removed("os.remove(path)")]
#[case::limited("resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))")]
fn a_log_that_fails_is_one_line_and_not_the_end(#[case] what: &str) {
    let program = format!(
        "import os, resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_DFL)\npath = os.environ['PYMEM_TRACE_PATH']\n{what}\n\
         x = [bytes(i % 100) for i in range(200_000)]\nprint(len(x))"
    );
    for interpreter in few() {
        let (_folder, path) = folder();
        let mut command = preloaded(&interpreter.path);
        command.env("PYMEM_TRACE", &path).env("PYMEM_TRACE_PATH", &path);
        let outcome = run(command.args(["-c", &program]));
        assert_eq!((outcome.status, outcome.stdout.trim()), (Some(0), "200000"), "{outcome:?}");
        assert!(outcome.stderr.starts_with("pymem-preload: PYMEM_TRACE: the log "), "{outcome:?}");
        assert_eq!(outcome.stderr.lines().count(), 1, "{interpreter}: {outcome:?}");
    }
}

/// Neither the log nor the heap map follows a link or replaces a device.
#[rstest]
#[case("PYMEM_TRACE", Some(1))]
#[case("PYMEM_HEAP_MAP", Some(0))]
fn a_link_is_refused(#[case] name: &str, #[case] status: Option<i32>) {
    let interpreter = &interpreters()[0];
    let (folder, link) = folder();
    let target = folder.path().join("target");
    fs::write(&target, "precious").expect("a file");
    std::os::unix::fs::symlink(&target, &link).expect("a link");
    let outcome = run(preloaded(&interpreter.path).env(name, &link).args(["-c", "pass"]));
    assert_eq!((outcome.status, outcome.signal), (status, None), "{outcome:?}");
    assert!(outcome.stderr.starts_with(&format!("pymem-preload: {name}: ")), "{outcome:?}");
    assert!(outcome.stderr.contains("no regular file"), "{outcome:?}");
    assert_eq!(fs::read(&target).expect("the target"), b"precious");
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 2);
}
