//! Where a block was made: each way to get to a line of Python, and code that goes while its blocks stay.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use heap_report::profile::{Row, Which};
use rstest::rstest;

use super::{bytes_at, folder, read};
use crate::interpreters::Interpreter;
use crate::process::{
    few_with_gil, is_newest, plain, preloaded, python, run, succeed, tries_all, with_gil,
};

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
    for interpreter in with_gil() {
        // Frames are of the interpreter, and what stands beside the profile is of the row.
        if row != "pymalloc" && !few_with_gil().any(|few| few.path == interpreter.path) {
            continue;
        }
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

/// An `__init__` that the evaluator runs without a call has a record of the interpreter's own between it and its caller, which is no frame.
#[test]
fn a_stack_of_inlined_calls_has_as_many_frames_as_any_other() {
    const PROGRAM: &str = "\
class Chained:
    def __init__(self, depth):
        if depth:
            self.next = Chained(depth - 1)
        self.data = bytearray(70_000)
for _ in range(50): Chained(3)
kept = Chained(100)
";
    for interpreter in with_gil() {
        let (_folder, path) = folder("inlined.json");
        let mut command = python(&interpreter.path, "pymalloc");
        succeed(command.env("PYMEM_PROFILE", &path).args(["-c", PROGRAM]));
        let profile = read(&path);
        let is_data = |row: &Row<'_>| {
            let is_line = row.stack().next() == Some(("__init__", "<string>", 5));
            is_line && row.amount(Which::Live).bytes >= 70_000
        };
        let mut depths: Vec<_> =
            profile.rows().filter(is_data).map(|row| row.stack().count()).collect();
        depths.sort_unstable();
        // The 70 innermost ones have one stack.
        let expected: Vec<_> = (2..=32).chain([32]).collect();
        assert_eq!(depths, expected, "{interpreter}");
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
    // A greenlet hides its frames in another way on 3.9 and 3.10, on 3.11 and 3.12, and since.
    let differ = |python: &&Interpreter| matches!(python.minor, 9 | 12 | 13) || is_newest(python);
    for interpreter in with_gil().filter(|python| tries_all() || differ(python)) {
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
    for interpreter in with_gil() {
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
    for interpreter in with_gil() {
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
    for interpreter in with_gil() {
        // The C library seldom has an address again so soon, on any interpreter.
        if row == "malloc" && !tries_all() && !is_newest(interpreter) {
            continue;
        }
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

/// A name is asked for while an allocation is under way, and before 3.12 any object that is made then may start the collector: of a list that
/// is being moved it would read the old place.
#[test]
fn a_file_whose_name_is_no_text_is_told_and_no_object_is_made_of_it() {
    const PROGRAM: &str = "\
import gc
class Item: pass
def fill(threshold):
    functions, kept = {}, []
    for i in range(100):
        exec(compile(f'def f{i}(kept):\\n    kept.append(None)', 'caf\\udce9.py', 'exec'), functions)
    del functions['__builtins__']
    gc.set_threshold(threshold)
    for function in functions.values():
        items = [Item(), Item(), Item(), Item()]
        function(items)
        kept.append(items)
    gc.set_threshold(700)
    return len(kept)
print(sum(fill(threshold) for threshold in range(2, 12)))
exec(compile('def \\u043d():\\n    return bytearray(70_000)', 'caf\\udce9\\U0001f40d.py', 'exec'))
kept = locals()['\\u043d']()
";
    for interpreter in with_gil() {
        let (_folder, path) = folder("names.json");
        let mut command = python(&interpreter.path, "pymalloc");
        let output = succeed(command.env("PYMEM_PROFILE", &path).args(["-c", PROGRAM]));
        assert_eq!(output, "1000\n", "{interpreter}");
        let profile = read(&path);
        let live = bytes_at(&profile, Which::Live, "caf\u{fffd}\u{1f40d}.py", "\u{43d}", 2);
        assert!((70_000..71_000).contains(&live), "{interpreter}: {live}");
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
    for interpreter in with_gil() {
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
