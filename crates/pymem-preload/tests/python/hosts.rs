//! What differs between hosts: subinterpreters, debug builds, and where an interpreter keeps its frames.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use pymem_domains::AllocatorName;
use rstest::rstest;

use crate::hostile::hosted;
use crate::process::{
    few, interpreters, library, plain, python, run, succeed, tries_all, with_gil,
};

/// `create`, `run_string` and `destroy` by whatever name the module has.
const SUBINTERPRETERS: &str = "
import sys, threading
try:
    import _interpreters as sub
except ImportError:
    import _xxsubinterpreters as sub
";

/// Once there was a subinterpreter, `PyGILState_Check` says yes to every thread, also to one that has no state.
#[test]
fn backtraces_while_subinterpreters_come_and_go() {
    let program = format!(
        "{SUBINTERPRETERS}
def use(interpreter):
    sub.run_string(interpreter, 'data = [str(n) * 3 for n in range(200)]; del data')
    data = [str(n) * 3 for n in range(200)]
for _ in range(5):
    interpreter = sub.create()
    thread = threading.Thread(target=use, args=(interpreter,))
    thread.start()
    data = [str(n) * 3 for n in range(200)]
    thread.join()
    use(interpreter)
    sub.destroy(interpreter)
print('well')
"
    );
    for interpreter in few() {
        let mut command = python(&interpreter.path, "debug");
        command.env("PYMEM_DEBUG", "backtrace=8").args(["-S", "-W", "ignore", "-c", &program]);
        assert_eq!(succeed(&mut command), "well\n", "{interpreter}");
    }
}

/// The thread of a C function without the GIL, after a subinterpreter lived.
#[test]
fn the_gil_must_be_held_after_a_subinterpreter() {
    let program = format!(
        "{SUBINTERPRETERS}
import ctypes
sub.destroy(sub.create())
ctypes.CDLL(None).PyMem_Malloc(ctypes.c_size_t(8))
"
    );
    for interpreter in few() {
        let outcome =
            run(python(&interpreter.path, "debug").args(["-W", "ignore", "-c", &program]));
        assert_eq!(outcome.signal, Some(libc::SIGABRT), "{interpreter}: {outcome:?}");
        let message = if interpreter.free_threaded && interpreter.minor > 13 {
            "called without an active thread state. Are you trying to call it inside of a Py_BEGIN_ALLOW_THREADS block?\n"
        } else {
            "called without holding the GIL\n"
        };
        let fatal =
            format!("Fatal Python error: _PyMem_DebugMalloc: Python memory allocator {message}");
        assert!(outcome.stderr.contains(&fatal), "{interpreter}: {outcome:?}");
    }
}

/// The default of a debug build has the hooks.
#[test]
fn debug_builds_keep_their_default() {
    for interpreter in with_gil() {
        let mut command = python(&interpreter.path, "");
        let outcome = run(command.env("PYMEM_STATS", "1").args(["-c", "pass"]));
        let name = if interpreter.pydebug { "pymalloc_debug" } else { "pymalloc" };
        let first = format!("pymem: {name} (");
        assert!(outcome.stderr.starts_with(&first), "{interpreter}: {outcome:?}");
    }
}

/// The table is that of the host's version, and newer ones have that of the newest. A host from 3.15 on that is on the C
/// library by default, as a sanitizer's build is, stays there.
#[rstest]
#[case("3.11.0", "default", "pymalloc (raw malloc, mem pymalloc, obj pymalloc)")]
#[case("3.14.10", "mimalloc", "mimalloc (raw malloc, mem mimalloc, obj mimalloc)")]
#[case("3.15.2", "mimalloc", "mimalloc (raw mimalloc, mem mimalloc, obj mimalloc)")]
#[case("3.16.0a1+", "mimalloc", "mimalloc (raw mimalloc, mem mimalloc, obj mimalloc)")]
#[case("3.14.10", "debug", "pymalloc_debug (raw malloc + debug, mem pymalloc + debug,")]
#[case("3.15.2", "default", "malloc (raw malloc, mem malloc, obj malloc)")]
fn the_host_decides_what_serves(#[case] version: &str, #[case] row: &str, #[case] serves: &str) {
    let mut command = hosted("json", true);
    command.env("PYMEM_HOST_VERSION", format!("{version} (main)")).env("PYTHONMALLOC", row);
    let json = succeed(&mut command);
    assert!(json.contains(&format!("\"serves\":\"{serves}")), "{json}");
}

const JSON: &str = "
import ctypes, os
buffer = ctypes.create_string_buffer(1 << 16)
ctypes.PyDLL(os.environ['LD_PRELOAD']).pymem_stats_json(buffer, ctypes.c_size_t(len(buffer)))
print(buffer.value.decode())
";

/// Huge pages are asked for by a variable that versions before 3.15 do not know, and by numbers alone.
#[test]
fn huge_pages_are_for_the_versions_that_know_them() {
    for interpreter in interpreters() {
        let is_on = |value: &str, option: &str| {
            let mut command = python(&interpreter.path, "default");
            command.env("PYTHON_PYMALLOC_HUGEPAGES", value).args([option, "-c", JSON]);
            succeed(&mut command).contains("\"huge_pages\":true")
        };
        assert_eq!(is_on("1", "-s"), interpreter.minor >= 15, "{interpreter}");
        assert_eq!(is_on(" -2", "-s"), interpreter.minor >= 15, "{interpreter}");
        for (value, option) in [("0", "-s"), ("", "-s"), ("yes", "-s"), ("1", "-E")] {
            assert!(!is_on(value, option), "{interpreter}: {value:?} {option}");
        }
    }
}

/// Modules of an interpreter with a shared `libpython` get the name of what serves, as long as it does.
#[test]
fn the_interpreter_names_what_serves_it() {
    let program = "
import ctypes, sys
name = ctypes.CDLL(None)._PyMem_GetCurrentAllocatorName
name.restype = ctypes.c_char_p
print(name(), end=' ')
import tracemalloc
tracemalloc.start()
print(name(), end=' ')
tracemalloc.stop()
print(name())
";
    let is_shared = "with open('/proc/self/maps') as maps: print('/libpython' in maps.read())";
    for interpreter in interpreters() {
        if succeed(plain(&interpreter.path).args(["-c", is_shared])) == "False\n" {
            continue;
        }
        for row in interpreter.rows() {
            let name: AllocatorName = row.parse().expect("a name of the table");
            let name = name.row(&interpreter.profile()).expect("a row").canonical_name();
            let output = succeed(python(&interpreter.path, row).args(["-c", program]));
            assert_eq!(output, format!("b'{name}' None b'{name}'\n"), "{interpreter}, {row}");
        }
    }
}

/// An interpreter that tells wrong offsets of its frames: nothing crashes, and a line says what is missing. Each word on one of the
/// interpreters, unless everything is to be tried. Which words are refused, unit tests of `debug_offsets.rs` show.
#[test]
fn wrong_offsets_of_frames_cost_the_frames_alone() {
    /// The words that are used, by minor version.
    fn words(minor: u32) -> &'static [usize] {
        match minor {
            13 => &[0, 1, 2, 19, 23, 28, 29, 30, 33, 34, 35, 36, 43, 44, 45],
            14 => &[0, 1, 2, 22, 26, 31, 32, 33, 36, 39, 40, 41, 48, 50, 51],
            _ => &[0, 1, 2, 22, 26, 39, 40, 41, 44, 47, 48, 49, 56, 58, 59],
        }
    }
    let program = "
import ctypes
p = ctypes.pythonapi.PyMem_Malloc(ctypes.c_size_t(8))
for n in range(1000): str(n)
print('well')
";
    let test = std::env::current_exe().expect("the test knows its own path");
    let target = test.parent().and_then(Path::parent).expect("the target's folder");
    let offsets = target.join("examples/liboffsets.so");
    assert!(offsets.is_file(), "{} is missing: cargo build --examples", offsets.display());
    let found: Vec<_> = interpreters().iter().filter(|python| python.minor > 12).collect();
    for (turn, interpreter) in found.iter().enumerate() {
        let run_with = |change: &str| {
            let mut command = plain(&interpreter.path);
            // Initialized last to first.
            command.env("LD_PRELOAD", format!("{}:{}", library().display(), offsets.display()));
            command.env("PYTHONMALLOC", "debug").env("PYMEM_DEBUG", "backtrace=8");
            command.env("PYMEM_OFFSETS", change).args(["-S", "-c", program]);
            run(&mut command)
        };
        assert_eq!(run_with("").stderr, "", "{interpreter}");
        let (turn, turns) = if tries_all() { (0, 1) } else { (turn, found.len()) };
        for word in words(interpreter.minor).iter().skip(turn).step_by(turns) {
            let outcome = run_with(&format!("{word}+8"));
            assert_eq!(
                (outcome.status, outcome.stdout.as_str()),
                (Some(0), "well\n"),
                "{interpreter}, word {word}: {outcome:?}"
            );
            assert!(outcome.stderr.lines().count() <= 1, "{interpreter}, word {word}: {outcome:?}");
        }
        let outcome = run_with("1=18446744073709551615");
        let says = "reports have native frames alone\n";
        assert!(outcome.stderr.ends_with(says), "{interpreter}: {outcome:?}");
    }
}

/// The hooks ask the interpreter for the thread's state once, and then read the word that holds it.
#[test]
fn the_thread_check_calls_nothing_of_the_interpreter() {
    if run(plain("sh").args(["-c", "command -v valgrind"])).status != Some(0) {
        eprintln!("skipped: valgrind is not installed");
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    for interpreter in with_gil().filter(|python| python.minor > 13) {
        let counts = folder.path().join(interpreter.minor.to_string());
        let mut command = python(Path::new("valgrind"), "debug");
        command.arg("--tool=callgrind").arg(format!("--callgrind-out-file={}", counts.display()));
        command.arg(&interpreter.path).args(["-S", "-c", "for n in range(3000): str(n) * 2"]);
        let outcome = run(&mut command);
        assert_eq!(outcome.status, Some(0), "{interpreter}: {outcome:?}");
        let text = fs::read_to_string(counts).expect("counts");
        let calls = calls_by_function(&text);
        let count_of = |wanted: &str| {
            let counts = calls.iter().filter(|(name, _)| name.contains(wanted));
            counts.map(|(_, count)| count).sum::<u64>()
        };
        let served = count_of("DebugHooks<A> as malloc_api::malloc::Malloc>::malloc");
        let asked = count_of("PyThreadState_GetUnchecked");
        println!("{interpreter}: {served} calls of malloc, {asked} of the interpreter");
        assert!(served > 10_000 && asked < 10, "{interpreter}: {served} served, {asked} asked");
    }
}

/// How often each function was called, from a file of callgrind's, which names a function once and then by its number.
fn calls_by_function(text: &str) -> HashMap<&str, u64> {
    let (mut names, mut calls) = (HashMap::new(), HashMap::new());
    let mut called = "";
    for line in text.lines() {
        let (key, value) = line.split_once('=').unwrap_or_default();
        match key {
            "fn" | "cfn" => {
                let (number, name) = value.split_once(' ').unwrap_or((value, ""));
                if !name.is_empty() {
                    names.insert(number, name);
                }
                if key == "cfn" {
                    called = names.get(number).copied().unwrap_or_default();
                }
            }
            "calls" => {
                let count = value.split(' ').next().and_then(|count| count.parse().ok());
                *calls.entry(called).or_default() += count.unwrap_or(0_u64);
            }
            _ => {}
        }
    }
    calls
}

/// Code objects are not kept for the sake of their names: of many that come to lie at one address, each has its own.
#[test]
fn code_at_the_address_of_dropped_code_has_its_own_name() {
    let program = r#"
import ctypes
malloc = ctypes.pythonapi.PyMem_Malloc
malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
places = set()
for i in range(100):
    names = {"malloc": malloc}
    exec(f"def f{i:03}(): return malloc(7000 + {i})", names)
    f = names.pop(f"f{i:03}")
    places.add(id(f.__code__))
    f()
    del f, names
print(len(places) < 50)
"#;
    for interpreter in with_gil() {
        let mut command = python(&interpreter.path, "debug");
        command.env("PYMEM_DEBUG", "backtrace=4,leak_site=in f");
        let outcome = run(command.args(["-c", program]));
        assert_eq!(outcome.stdout, "True\n", "{interpreter}: {outcome:?}");
        for number in 0..100 {
            let group = format!(
                "1 blocks with {} bytes in the mem domain, allocated by (most recent call first):\n  \
                 File \"<string>\", line 1, in f{number:03}\n",
                7000 + number
            );
            assert!(outcome.stderr.contains(&group), "{group:?} of {interpreter}: {outcome:?}");
        }
    }
}
