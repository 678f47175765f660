//! Programs that are profiled: who holds their memory is told to the line, and they do what they did.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::{env, fs};

use heap_profile::{Amount, Location, Site, Snapshot};
use heap_report::profile::{Mode, ProfileFile, Row, Which};
use malloc_api::Domain;
use rstest::rstest;

use crate::interpreters::Interpreter;
use crate::process::{
    few_with_gil, free_threaded, plain, preloaded, python, run, succeed, with_gil,
};

/// The interpreters whose frames are told.
fn profiled() -> impl Iterator<Item = &'static Interpreter> {
    with_gil().filter(|interpreter| interpreter.minor >= 9)
}

fn folder(name: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(name);
    (folder, path)
}

fn read(path: &Path) -> ProfileFile {
    ProfileFile::read(fs::File::open(path).expect("a profile")).expect("a whole profile")
}

/// The bytes at the line `line` of `file`, in functions called `function`.
fn bytes_at(profile: &ProfileFile, which: Which, file: &str, function: &str, line: u32) -> u64 {
    let at = |row: &Row<'_>| {
        row.stack().next().is_some_and(|(name, path, number)| {
            (name, number) == (function, line) && path.ends_with(file)
        })
    };
    profile.rows().filter(at).map(|row| row.amount(which).bytes).sum()
}

/// Blocks of sizes that nothing else has, each made in a place of its own.
const PLACES: &str = "\
import threading
kept = []
def generator():
    while True:
        yield bytearray(70_000)
async def coroutine():
    return bytearray(80_000)
def in_thread():
    kept.append(bytearray(90_000))
class Dropped:
    def __del__(self):
        kept.append(bytearray(100_000))
def recursive(depth):
    if depth:
        return recursive(depth - 1)
    return bytearray(110_000)
kept.append(next(generator()))
try:
    coroutine().send(None)
except StopIteration as end:
    kept.append(end.value)
thread = threading.Thread(target=in_thread)
thread.start()
thread.join()
Dropped()
kept.append(recursive(200))
print(len(kept))
";

/// Where [`PLACES`] has its blocks: function, line, bytes.
const EXPECTED: [(&str, u32, u64); 5] = [
    ("generator", 5, 70_000),
    ("coroutine", 7, 80_000),
    ("in_thread", 9, 90_000),
    ("__del__", 12, 100_000),
    ("recursive", 16, 110_000),
];

#[rstest]
#[case::beside_pools("pymalloc")]
#[case::mimalloc("mimalloc")]
#[case::beside_hooks("debug")]
fn a_block_stands_at_the_line_that_made_it(#[case] row: &str) {
    for interpreter in profiled() {
        let (folder, path) = folder("places.json");
        let program = folder.path().join("places.py");
        fs::write(&program, PLACES).expect("a program");
        let mut command = python(&interpreter.path, row);
        let output = succeed(command.env("PYMEM_PROFILE", &path).arg(&program));
        assert_eq!(output, "5\n", "{interpreter}");
        let profile = read(&path);
        for (function, line, bytes) in EXPECTED {
            let live = bytes_at(&profile, Which::Live, "places.py", function, line);
            // A bytearray keeps a byte more, and has a head.
            assert!(live >= bytes && live < bytes + 1_000, "{interpreter}: {function}: {live}");
        }
        let deep = profile.rows().find(|row| {
            row.stack().next().is_some_and(|(name, _, line)| (name, line) == ("recursive", 16))
        });
        let depth = deep.map(|row| row.stack().count());
        assert_eq!(depth, Some(32), "{interpreter}: the innermost frames of a deep stack");
    }
}

/// Whether pip could put `package` into `folder` for `interpreter`; says so where it could not.
fn has_package(interpreter: &Interpreter, package: &str, folder: &Path) -> bool {
    let mut pip = plain(&interpreter.path);
    pip.args(["-m", "pip", "install", "--quiet", "--only-binary", ":all:"]);
    pip.args(["--retries", "0", "--timeout", "5"]);
    let outcome = run(pip.arg("--target").arg(folder).arg(package));
    let has = outcome.status == Some(0);
    if !has {
        eprintln!("skipped: pip has no {package} for {interpreter}");
    }
    has
}

#[test]
fn a_block_stands_at_the_line_of_the_greenlet_that_made_it() {
    const PROGRAM: &str = "\
import greenlet
kept = []
def in_greenlet():
    kept.append(bytearray(70_000))
    main.switch()
    kept.append(bytearray(80_000))
def switch():
    other.switch()
main = greenlet.getcurrent()
other = greenlet.greenlet(in_greenlet)
switch()
kept.append(bytearray(90_000))
other.switch()
kept.append(bytearray(100_000))
";
    for interpreter in profiled() {
        let (folder, path) = folder("greenlets.json");
        if !has_package(interpreter, "greenlet", folder.path()) {
            continue;
        }
        let program = folder.path().join("greenlets.py");
        fs::write(&program, PROGRAM).expect("a program");
        succeed(preloaded(&interpreter.path).env("PYMEM_PROFILE", &path).arg(&program));
        let profile = read(&path);
        let expected = [
            ("in_greenlet", 4, 70_000),
            ("in_greenlet", 6, 80_000),
            ("<module>", 12, 90_000),
            ("<module>", 14, 100_000),
        ];
        for (function, line, bytes) in expected {
            let live = bytes_at(&profile, Which::Live, "greenlets.py", function, line);
            assert!(live >= bytes && live < bytes + 1_000, "{interpreter}: line {line}: {live}");
        }
    }
}

/// The scanner of `_json` is C, and is called by a line of the library's decoder.
#[rstest]
#[case::alone("pymalloc", "")]
#[case::beside_stacks_of_the_hooks("debug", "backtrace=4")]
fn native_frames_stand_above_the_line_that_called_them(#[case] row: &str, #[case] debug: &str) {
    const PROGRAM: &str = "\
import _json, json, os
kept = [json.loads('[\"%s\"]' % ('a' * 70_000))]
if os.fork() == 0:
    kept.append(json.loads('[1, 2, 3]'))
    os._exit(0)
os.wait()
print(getattr(_json, '__file__', ''))
";
    for interpreter in profiled() {
        let (_folder, path) = folder("native.json");
        let mut command = python(&interpreter.path, row);
        // A block of seventeen intervals is sampled all but surely; unwinding for every block takes long.
        let request = format!("{},native,sample=4K", path.display());
        command.env("PYMEM_PROFILE", request).env("PYMEM_DEBUG", debug).args(["-c", PROGRAM]);
        let library = succeed(&mut command);
        let profile = read(&path);
        let large = profile.rows().filter(|row| row.amount(Which::Live).bytes >= 70_000);
        let stacks: Vec<Vec<_>> = large.map(|row| row.stack().collect()).collect();
        let scanned = |stack: &Vec<(&str, &str, u32)>| {
            let python = stack.iter().position(|&(_, _, line)| line > 0).unwrap_or(0);
            let (native, python) = stack.split_at(python);
            let file = Path::new(library.trim()).file_name();
            let name = file.map_or("", |name| name.to_str().expect("a name"));
            let is_scanner = native.iter().any(|(_, file, _)| file.ends_with(name));
            let has_symbol = native.iter().any(|(function, ..)| function.starts_with("Py"));
            let is_pythons = |(function, ..): &(&str, _, _)| *function == "PyEval_EvalCode";
            !native.iter().any(is_pythons)
                && is_scanner
                && has_symbol
                && python.first().is_some_and(|(function, ..)| *function == "raw_decode")
                && python.last().is_some_and(|&(_, file, line)| (file, line) == ("<string>", 2))
                && python.iter().all(|&(_, _, line)| line > 0)
        };
        assert!(stacks.iter().any(scanned), "{interpreter}: {stacks:#?}");
    }
}

/// Thirty lines that keep blocks of 500 bytes, ten of 1,500 samples and more, and twenty of 500 at most; and drop as many.
///
/// A tenth is four deviations of 1,500 samples: one run in some thousands is further off in one of ten lines.
#[test]
fn the_ten_largest_lines_of_a_sampled_profile_are_right_to_a_tenth() {
    const INTERVAL: usize = 2_048;
    let samples = |line: usize| if line < 10 { 1_500 + 100 * line } else { 700 - 20 * line };
    // What `sys.getsizeof(bytes(467))` says.
    let blocks = |line: usize| samples(line) * INTERVAL / 500;
    let lines = (0..30).map(|line| {
        let make = format!("[bytes(467) for _ in range({})]", blocks(line));
        format!("{make}; kept.append({make})\n")
    });
    let program: String = ["kept = []\n".to_owned()].into_iter().chain(lines).collect();
    let mut wrong = 0;
    for interpreter in profiled() {
        let (folder, path) = folder("large.json");
        let source = folder.path().join("large.py");
        fs::write(&source, &program).expect("a program");
        let request = format!("{},sample={INTERVAL}", path.display());
        succeed(preloaded(&interpreter.path).env("PYMEM_PROFILE", request).arg(&source));
        let mut held = vec![0; 32];
        for row in read(&path).rows().filter(|row| row.class_bytes() == 512) {
            if let Some((_, file, line)) = row.stack().next()
                && file.ends_with("large.py")
            {
                held[line as usize] += row.amount(Which::Live).bytes;
            }
        }
        let mut largest: Vec<usize> = (2..32).collect();
        largest.sort_by_key(|&line| Reverse(held[line]));
        assert!(largest[..10].iter().all(|&line| line < 12), "{interpreter}: {held:?}");
        let is_right =
            |line: usize| (held[line + 2] as f64 / (500 * blocks(line)) as f64 - 1.0).abs() <= 0.1;
        wrong += usize::from(!(0..10).all(is_right));
    }
    assert!(wrong <= 1, "{wrong} interpreters");
}

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
fn a_live_block_tells_who_allocated_it() {
    const PROGRAM: &str = "\
import ctypes
pymem = ctypes.PyDLL(None)
told = []
call = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint)
note = call(lambda data, function, file, line: told.append((function, file, line)))
ask = pymem.pymem_profile_traceback
ask.argtypes = ctypes.c_void_p, call, ctypes.c_void_p
malloc, free = ctypes.pythonapi.PyMem_Malloc, ctypes.pythonapi.PyMem_Free
malloc.restype, malloc.argtypes, free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def make(size):
    return malloc(size)
blocks = [make(40), make(100_000)]
for block in blocks:
    assert ask(block, note, None) == 2, told
    assert told == [(b'make', b'<string>', 11), (b'<module>', b'<string>', told[1][2])], told
    assert told[1][2] in (12, 13), told
    told.clear()
free(blocks[0])
print(ask(blocks[0], note, None), ask(None, note, None), told)
";
    for interpreter in profiled() {
        let (_folder, path) = folder("traceback.json");
        let mut command = preloaded(&interpreter.path);
        command.env("PYMEM_PROFILE", &path).args(["-c", PROGRAM]);
        assert_eq!(succeed(&mut command), "-2 -2 []\n", "{interpreter}");
        let without = PROGRAM.replace(
            "assert ask(block, note, None) == 2, told",
            "print(ask(block, note, None)); continue",
        );
        let mut command = preloaded(&interpreter.path);
        assert_eq!(succeed(command.args(["-c", &without])), "-1\n-1\n-1 -1 []\n", "{interpreter}");
    }
}

/// Code objects are not kept for the sake of their names, and of many that come to lie at one address, each has its own.
#[rstest]
#[case::pools("pymalloc")]
#[case::c_library("malloc")]
fn code_that_is_dropped_is_free_and_keeps_its_name(#[case] row: &str) {
    const PROGRAM: &str = "\
places, kept = set(), []
for i in range(60):
    names = {'kept': kept}
    exec(f'def f{i:03}():\\n    data = bytes(7000 + {i})\\n    kept.append(data)' + '\\n    len(kept)' * 300, names)
    f = names.pop(f'f{i:03}')
    places.add(id(f.__code__))
    f()
    del f, names
print(len(places) < 30)
";
    for interpreter in profiled() {
        let (_folder, path) = folder("code.json");
        let mut command = preloaded(&interpreter.path);
        command.env("PYTHONMALLOC", row).env("PYMEM_PROFILE", &path).args(["-c", PROGRAM]);
        // The C library takes addresses again later.
        let are_taken_again = succeed(&mut command) == "True\n";
        assert!(are_taken_again || row == "malloc", "{interpreter}");
        let profile = read(&path);
        // In one pass: the profile has thousands of rows, and 60 functions are asked for.
        let mut held: HashMap<(&str, u32), u64> = HashMap::new();
        for row in profile.rows() {
            let Some((function, "<string>", line)) = row.stack().next() else { continue };
            *held.entry((function, line)).or_default() += row.amount(Which::Live).bytes;
        }
        for number in 0..60 {
            let held = held[&(format!("f{number:03}").as_str(), 2)];
            assert!((7000..7200).contains(&(held - number)), "{interpreter}: {number} {held}");
        }
        // 60 code objects of some six KiB each.
        let code = held[&("<module>", 4)];
        assert!(code < 100_000, "{interpreter}: {code}");
    }
}

/// What a thread remembers of a call is not taken for a later one in other code, at the same instruction of the same frame.
#[test]
fn code_that_takes_the_place_of_other_code_unseen_has_its_own_name() {
    const PROGRAM: &str = "\
import ctypes
pymem = ctypes.PyDLL(None)
start, stop = pymem.pymem_profile_start, pymem.pymem_profile_stop
places, kept = set(), []
for i in range(40):
    names = {}
    exec(f'def f{i:02}(call, size): return call(size)', names)
    f = names.pop(f'f{i:02}')
    places.add(id(f.__code__))
    size = 7000 + i
    start(None)
    data = f(bytes, size)
    kept.append(data)
    f(stop, 0)
    del f, names
print(len(places) < 20)
";
    for interpreter in profiled() {
        let (_folder, path) = folder("unseen.json");
        let mut command = preloaded(&interpreter.path);
        command.env("PYTHONMALLOC", "pymalloc").env("PYMEM_PROFILE", &path).args(["-c", PROGRAM]);
        assert_eq!(succeed(&mut command), "True\n", "{interpreter}");
        let profile = read(&path);
        for number in 0..40 {
            let function = format!("f{number:02}");
            let held = bytes_at(&profile, Which::Live, "<string>", &function, 1);
            assert!((7000..7200).contains(&(held - number)), "{interpreter}: {number} {held}");
        }
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
    for interpreter in profiled() {
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
    for interpreter in profiled() {
        let mut command = preloaded(&interpreter.path);
        let outcome = run(command.env("PYMEM_PROFILE", request).args(["-c", "print(1)"]));
        assert_eq!((outcome.status, outcome.stdout.as_str()), (Some(1), ""), "{interpreter}");
        assert_eq!(outcome.stderr.lines().count(), 1, "{interpreter}");
        assert!(outcome.stderr.contains(says), "{interpreter}: {}", outcome.stderr);
    }
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
    let interpreter = profiled().last().expect("an interpreter");
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

#[test]
fn memory_that_an_extension_reports_stands_at_the_line_that_made_it() {
    const PROGRAM: &str = "\
import _testcapi
def report():
    _testcapi.tracemalloc_track(389047, 0x10000, 123_456)
report()
_testcapi.tracemalloc_track(389047, 0x20000, 1_000)
_testcapi.tracemalloc_untrack(389047, 0x20000)
print('libpython' in open('/proc/self/maps').read())
";
    let mut seen = 0;
    for interpreter in profiled().filter(|interpreter| interpreter.has_tests) {
        let (folder, path) = folder("reported.json");
        let program = folder.path().join("reported.py");
        fs::write(&program, PROGRAM).expect("a program");
        let mut command = python(&interpreter.path, "pymalloc");
        command.env("PYMEM_PROFILE", &path).args(["-X", "tracemalloc"]).arg(&program);
        // A static interpreter's own functions come first.
        if succeed(&mut command) != "True\n" {
            continue;
        }
        let profile = read(&path);
        let reported = || profile.rows().filter(|row| row.domain() == "389047");
        let live: Vec<_> = reported()
            .map(|row| (row.stack().next().map(|(name, _, line)| (name, line)), row))
            .map(|(line, row)| (line, row.amount(Which::Live).bytes))
            .filter(|(_, bytes)| *bytes > 0)
            .collect();
        assert_eq!(live, [(Some(("report", 3)), 123_456)], "{interpreter}");
        seen += 1;
    }
    assert!(seen > 0, "no interpreter has a shared library");
}

/// Keeps blocks of types without a free list, and writes what `tracemalloc` and the profile say of the lines at one moment.
///
/// An object from a free list is one block with two owners in turn: `tracemalloc` moves it to the second one's line, and no
/// allocator hears of that.
const TRUTH: &str = "\
import ctypes, json, os, sys, tracemalloc
kept = []
class Node:
    __slots__ = 'left', 'right', 'name'
def texts():
    for n in range(5000):
        kept.append('text %d' % n)
def buffers():
    for size in range(1, 3000, 7):
        kept.append(b'x' * size)
def numbers():
    for n in range(3000):
        kept.append(n * 1j)
def tree(depth):
    node = Node()
    node.name = 'n' * depth
    if depth:
        node.left = tree(depth - 1)
        node.right = tree(depth - 1)
    return node
def trees():
    kept.append(tree(9))
def wide():
    for n in range(1, 300):
        kept.append('\\u20ac' * n)
texts(); buffers(); numbers(); trees(); wide()
library = ctypes.CDLL(os.environ['LD_PRELOAD'].split(':')[0])
snapshot = tracemalloc.take_snapshot()
library.pymem_profile_write(sys.argv[1].encode())
for line in snapshot.statistics('lineno'):
    frame = line.traceback[0]
    if frame.filename == __file__:
        print(frame.lineno, line.size)
";

#[test]
fn the_live_bytes_of_a_line_are_those_of_tracemalloc() {
    let lines =
        [("texts", 7), ("buffers", 10), ("numbers", 13), ("tree", 15), ("tree", 16), ("wide", 25)];
    for interpreter in profiled() {
        let (folder, path) = folder("truth.json");
        let (program, end) = (folder.path().join("truth.py"), folder.path().join("end.json"));
        fs::write(&program, TRUTH).expect("a program");
        let mut command = python(&interpreter.path, "pymalloc");
        command.env("PYMEM_PROFILE", end).args(["-X", "tracemalloc"]).arg(&program);
        let output = succeed(command.arg(&path));
        let profile = read(&path);
        for (function, line) in lines {
            let traced = output.lines().find_map(|text| {
                let (number, bytes) = text.split_once(' ')?;
                (number.parse() == Ok(line)).then(|| bytes.parse::<u64>().ok())?
            });
            // What `tracemalloc` keeps of each block is raw memory.
            let rows = profile.rows().filter(|row| row.domain() != "raw").filter(|row| {
                row.stack().next().is_some_and(|(name, file, number)| {
                    (name, number) == (function, line) && file.ends_with("truth.py")
                })
            });
            let seen: u64 = rows.map(|row| row.amount(Which::Live).bytes).sum();
            assert!(seen > 10_000, "{interpreter}: {function}: {seen}");
            assert_eq!(traced, Some(seen), "{interpreter}: {function}, line {line}");
        }
    }
}
