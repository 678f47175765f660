//! What starts, stops and asks for a profile, the children of a fork, and what is refused.

use std::path::Path;
use std::{env, fs};

use heap_profile::{Amount, Location, Site, Snapshot};
use heap_report::profile::{Mode, ProfileFile, Which};
use malloc_api::Domain;
use rstest::rstest;

use super::{bytes_at, folder, read};
use crate::process::{few_with_gil, free_threaded, preloaded, run, succeed, with_gil};

#[test]
fn a_forked_child_goes_on_in_a_file_of_its_own_however_it_ends() {
    const PROGRAM: &str = "\
import os, sys, warnings
warnings.simplefilter('ignore')
kept = bytearray(70_000)
children = []
for end in (os._exit, sys.exit):
    child = os.fork()
    if child == 0:
        more = bytearray(80_000)
        end(0)
    children.append(child)
    os.waitpid(child, 0)
print(*children)
";
    for interpreter in few_with_gil() {
        let (folder, path) = folder("forks.json");
        let mut command = preloaded(&interpreter.path);
        let output = succeed(command.env("PYMEM_PROFILE", &path).args(["-c", PROGRAM]));
        let at =
            |path: &Path, line| bytes_at(&read(path), Which::Live, "<string>", "<module>", line);
        assert!(at(&path, 3) >= 70_000 && at(&path, 8) == 0, "{interpreter}");
        for child in output.split_whitespace() {
            let path = folder.path().join(format!("forks.{child}.json"));
            assert!(at(&path, 3) >= 70_000 && at(&path, 8) >= 80_000, "{interpreter}");
        }
    }
}

/// Eight threads allocate all the while; no child waits for a lock. Every second one ends by a signal and writes no file, the
/// others write whole ones. `PYMEM_TEST_FORKS` is how many children there are, 20 without it.
#[test]
fn children_that_are_forked_among_threads_go_on() {
    const PROGRAM: &str = "\
import os, signal, sys, threading, warnings
warnings.simplefilter('ignore')
over = False
written = set()
def work():
    while not over:
        [str(n) for n in range(100)]
threads = [threading.Thread(target=work) for _ in range(8)]
[thread.start() for thread in threads]
for n in range(int(sys.argv[1])):
    child = os.fork()
    if child == 0:
        signal.alarm(100)
        exec('[[bytearray(n) for n in range(99)] for _ in range(9)]')
        if n % 2:
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert status == (0 if n % 2 else signal.SIGKILL), status
    if n % 2:
        written.add(child)
over = True
[thread.join() for thread in threads]
print(len(written))
";
    let forks = env::var("PYMEM_TEST_FORKS").unwrap_or_else(|_| "20".to_owned());
    for interpreter in few_with_gil() {
        let (folder, path) = folder("threads.json");
        let mut command = preloaded(&interpreter.path);
        command.env("PYMEM_PROFILE", &path).args(["-c", PROGRAM, &forks]);
        // Of a thousand children some have the number of one that has ended, and replace its file.
        let children: usize = succeed(&mut command).trim().parse().expect("how many children");
        let files = fs::read_dir(folder.path()).expect("the folder");
        let held = files.map(|file| {
            let profile = read(&file.expect("a file").path());
            profile.rows().map(|row| row.amount(Which::Live).bytes).sum::<u64>()
        });
        let held: Vec<u64> = held.collect();
        assert_eq!(held.len(), children + 1, "{interpreter}");
        assert!(held.iter().all(|&bytes| bytes > 100_000), "{interpreter}: {held:?}");
    }
}

#[test]
fn a_signal_has_the_file_written_and_another_one_stops_the_recording() {
    const PROGRAM: &str = "\
import ctypes, json, os, signal, sys
path = sys.argv[1]
first = bytearray(70_000)
os.kill(os.getpid(), signal.SIGUSR1)
[object() for _ in range(100)]
print(os.path.exists(path))
os.kill(os.getpid(), signal.SIGUSR2)
[object() for _ in range(100)]
second = bytearray(80_000)
pymem = ctypes.PyDLL(None)
assert pymem.pymem_profile_start(None) == 0
third = bytearray(90_000)
work = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
keep = work(lambda data: kept.append(bytearray(95_000)))
kept = []
assert pymem.pymem_profile_unrecorded(keep, None) == 0
assert pymem.pymem_profile_unrecorded(None, None) == -1
assert pymem.pymem_profile_stop() == 0
fourth = bytearray(91_000)
";
    for interpreter in few_with_gil() {
        let (_folder, path) = folder("signals.json");
        let mut command = preloaded(&interpreter.path);
        command.env("PYMEM_PROFILE", &path).args(["-c", PROGRAM]).arg(&path);
        assert_eq!(succeed(&mut command), "True\n", "{interpreter}");
        let profile = read(&path);
        let at = |line| bytes_at(&profile, Which::Live, "<string>", "<module>", line);
        assert!(at(3) >= 70_000 && at(12) >= 90_000, "{interpreter}");
        assert_eq!((at(9), at(19)), (0, 0), "{interpreter}");
        let unrecorded = bytes_at(&profile, Which::Total, "<string>", "<lambda>", 14);
        assert!(unrecorded < 1_000, "{interpreter}: {unrecorded}");
    }
}

#[test]
fn a_running_program_starts_and_reports_by_the_library_and_a_leak_is_what_grew() {
    const PROGRAM: &str = "\
import ctypes, os, signal, sys
folder = sys.argv[1].encode()
pymem = ctypes.PyDLL(None)
signals = []
signal.signal(signal.SIGUSR2, lambda *_: signals.append(1))
assert pymem.pymem_profile_start(None) == -1
assert pymem.pymem_profile_start(folder + b'/a,fast') == -1
assert pymem.pymem_profile_start(folder + b'/none/a') == -2
assert pymem.pymem_profile_start(folder + b'/end.json') == 0
os.kill(os.getpid(), signal.SIGUSR2)
assert signals == [1]
kept = []
def request(n):
    answer = [str(n), {n: n}]
    if n % 10_000 == 7:
        kept.append(bytearray(500))
    return answer
cache = [request(n) for n in range(2_000)]
assert pymem.pymem_profile_write(folder + b'/before.json') == 0
for n in range(10_000):
    request(n)
assert pymem.pymem_profile_write(folder + b'/after.json') == 0
files = [folder + b'/after.json', None, None, folder + b'/before.json']
assert pymem.pymem_report(*files) == 0
assert pymem.pymem_report(files[0], b'speedscope', folder + b'/a.speedscope.json', None) == 0
assert pymem.pymem_report(files[0], b'picture', None, None) == -1
assert pymem.pymem_report(None, None, None, None) == -1
assert pymem.pymem_report(files[0], None, folder + b'/none/a', None) == -2
assert pymem.pymem_report(folder + b'/end', None, None, None) == -3
";
    for interpreter in with_gil() {
        let (folder, path) = folder("leak.py");
        fs::write(&path, PROGRAM).expect("a program");
        let outcome = run(preloaded(&interpreter.path).arg(&path).arg(folder.path()));
        assert_eq!(outcome.status, Some(0), "{interpreter}: {outcome:?}");
        assert_eq!(outcome.stderr.lines().count(), 3, "{interpreter}: {}", outcome.stderr);
        let (_, most) = outcome.stdout.split_once("most at\n").expect("a table");
        let first = most.lines().next().unwrap_or_default();
        assert!(first.ends_with("leak.py:16 request"), "{interpreter}: {}", outcome.stdout);
        assert!(folder.path().join("end.json").exists(), "{interpreter}");
    }
}

#[rstest]
#[case::no_file(",sample=1K", "no file is named; give one")]
#[case::option("a.json,fast", "unknown option `fast`: expected sample=BYTES")]
#[case::nothing_after_the_comma("a.json,", "unknown option ``: expected sample=BYTES")]
#[case::value_of_a_flag("a.json,native=1", "unknown option `native=1`: expected sample=BYTES")]
#[case::number("a.json,frames=0", "frames=0: expected 1 to 128")]
#[case::number_above_the_most("a.json,frames=129", "frames=129: expected 1 to 128")]
#[case::interval("a.json,sample=0", "sample=0: expected a number of bytes above 0")]
#[case::no_interval("a.json,sample=", "sample=: expected a number of bytes above 0")]
#[case::device("/dev/null", "name a new file, or one to replace")]
#[case::folder("/no/such/folder/a.json", "name a file in a folder that can be written")]
fn a_bad_request_ends_the_program_in_one_sentence(#[case] request: &str, #[case] says: &str) {
    let Some(interpreter) = with_gil().last() else { return };
    let mut command = preloaded(&interpreter.path);
    let outcome = run(command.env("PYMEM_PROFILE", request).args(["-c", "print(1)"]));
    assert_eq!((outcome.status, outcome.stdout.as_str()), (Some(1), ""), "{outcome:?}");
    assert_eq!(outcome.stderr.lines().count(), 1, "{outcome:?}");
    assert!(outcome.stderr.contains(says), "{outcome:?}");
}

/// A profile of one site, cut at each byte, and with other bytes in each place. A change may make another profile of it, of which
/// a report is made; nothing else may happen to the program that asks.
#[test]
fn a_file_that_is_cut_or_changed_anywhere_makes_a_report_or_one_sentence() {
    const PROGRAM: &str = "\
import ctypes, itertools, os, sys
pymem = ctypes.PyDLL(None)
path = os.fsencode(sys.argv[1])
whole = open(path, 'rb').read()
formats = itertools.cycle([b'json', b'table', b'collapsed', b'speedscope', b'html', b'pprof'])
def report(data):
    with open(path + b'.bad', 'wb') as bad:
        bad.write(data)
    return pymem.pymem_report(path + b'.bad', next(formats), path + b'.out', None)
assert report(whole) == 0
refused = len(whole)
for end in range(len(whole)):
    assert report(whole[:end]) == -3, end
for place in range(len(whole)):
    for byte in b'9-\\xff':
        changed = bytearray(whole)
        changed[place] = byte
        status = report(changed)
        assert status in (0, -3), (place, byte, status)
        refused += status == -3
print(refused)
";
    let location = Location { function: "load".into(), file: "app.py".into(), line: 7 };
    let held = Amount { bytes: 500, blocks: 5 };
    let site = Site {
        stack: [location.into()].into(),
        origin: Domain::Obj.into(),
        class_bytes: 112,
        live: held,
        peak: held,
        total: held,
    };
    let snapshot = Snapshot { sites: vec![site], lost: Amount::default() };
    let profile = ProfileFile::new(&snapshot, vec!["app.py".to_owned()], 17, Mode::Exact);
    let (_folder, path) = folder("small.json");
    profile.write(fs::File::create(&path).expect("a file")).expect("a profile");
    let interpreter = with_gil().last().expect("an interpreter");
    let outcome = run(preloaded(&interpreter.path).args(["-c", PROGRAM]).arg(&path));
    assert_eq!(outcome.status, Some(0), "{outcome:?}");
    let refused: usize = outcome.stdout.trim().parse().expect("how many were refused");
    let sentences: Vec<_> = outcome.stderr.lines().collect();
    assert_eq!(sentences.len(), refused, "{}", outcome.stderr);
    for sentence in sentences {
        let (start, says) = sentence.split_once(".bad: ").unwrap_or_default();
        assert!(start.starts_with("pymem: "), "{sentence}");
        assert!(says.contains(": give ") || says.ends_with(": write it anew"), "{sentence}");
    }
}

#[test]
fn an_interpreter_without_a_gil_is_not_profiled() {
    for interpreter in free_threaded() {
        let mut command = preloaded(&interpreter.path);
        let outcome = run(command.env("PYMEM_PROFILE", "/tmp/a.json").args(["-c", "print(1)"]));
        assert_eq!(outcome.status, Some(1), "{interpreter}");
        assert!(outcome.stderr.contains("free-threaded"), "{interpreter}: {}", outcome.stderr);
    }
}
