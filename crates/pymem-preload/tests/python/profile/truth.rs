//! The bytes of a line: beside `tracemalloc`, beside an exact profile, and with what extensions report.

use std::cmp::Reverse;
use std::fs;

use heap_report::profile::{Row, Which};

use super::{folder, read};
use crate::process::{preloaded, python, succeed, with_gil};
use crate::second_interpreter::FIRST_WITH_OWN_GIL;

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
    for interpreter in with_gil() {
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
    for interpreter in with_gil().filter(|interpreter| interpreter.has_tests) {
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
    for interpreter in with_gil() {
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

/// Three interpreters with a GIL of their own, which make and drop 300,000 blocks of 336 bytes each, at one line.
#[test]
fn interpreters_side_by_side_lose_no_counts() {
    const PROGRAM: &str = "\
import sys, threading
try: import _interpreters as sub
except ImportError: import _xxsubinterpreters as sub
WORK = '''
def make():
    return [bytes(300) for _ in range(2000)]
for _ in range(150):
    kept = make()
    kept = None
'''
def elsewhere():
    interpreter = sub.create('isolated') if sys.version_info >= (3, 13) else sub.create(isolated=True)
    assert sub.run_string(interpreter, WORK) is None
    sub.destroy(interpreter)
started = [threading.Thread(target=elsewhere) for _ in range(3)]
for thread in started: thread.start()
for thread in started: thread.join()
";
    for interpreter in with_gil().filter(|python| python.minor >= FIRST_WITH_OWN_GIL) {
        // Without pools nobody waits for a second interpreter but the profile.
        for row in ["pymalloc", "malloc"] {
            let (_folder, path) = folder("apart.json");
            let mut command = python(&interpreter.path, row);
            command.env("PYMEM_PROFILE", &path).args(["-S", "-W", "ignore", "-c", PROGRAM]);
            succeed(&mut command);
            let profile = read(&path);
            let made = |which| {
                let is_made = |row: &Row<'_>| {
                    let function = row.stack().next().map(|(function, ..)| function);
                    row.class_bytes() == 336 && function == Some("make")
                };
                profile.rows().filter(is_made).map(|row| row.amount(which).blocks).sum::<u64>()
            };
            assert_eq!(
                [made(Which::Total), made(Which::Live)],
                [900_000, 0],
                "{interpreter}, {row}"
            );
        }
    }
}
