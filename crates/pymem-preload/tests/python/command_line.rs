//! Names, options and variables that decide about the allocator: the interpreter's own precedence and errors.

use pymem_domains::UNKNOWN_ALLOCATOR_TEXT;
use rstest::rstest;

use crate::process::{interpreters, plain, preloaded, python, run, succeed, with_gil};

pub(crate) const UNKNOWN_ALLOCATOR: &str = UNKNOWN_ALLOCATOR_TEXT;

#[rstest]
fn an_unknown_name_is_the_interpreters_own_error(
    #[values("foo", "Malloc", "malloc ", "PYMALLOC", "pymalloc,debug")] name: &str,
) {
    for interpreter in interpreters() {
        let outcome = run(python(&interpreter.path, name).args(["-c", "print(1)"]));
        let without =
            run(plain(&interpreter.path).env("PYTHONMALLOC", name).args(["-c", "print(1)"]));
        assert_eq!(outcome, without, "{interpreter} with {name}");
        assert_eq!((outcome.status, outcome.stdout.as_str()), (Some(1), ""), "{interpreter}");
        // 3.14 without the GIL has the stacks of no thread yet follow.
        let text = outcome.stderr.strip_prefix(UNKNOWN_ALLOCATOR);
        assert!(text.is_some(), "{interpreter} with {name}: {outcome:?}");
    }
}

/// Whether the obj domain is served by the library.
const OURS: &str = r"
import ctypes, os, sys
class Record(ctypes.Structure):
    _fields_ = [(n, ctypes.c_void_p) for n in ('ctx', 'malloc', 'calloc', 'realloc', 'free')]
def get(function):
    record = Record()
    function(2, ctypes.byref(record))
    return record.malloc
mine = ctypes.CDLL(os.environ['LD_PRELOAD'])
print(get(ctypes.pythonapi.PyMem_GetAllocator) == get(mine.pymem_get_allocator), sys.flags.dev_mode)
";

/// With `-E` and `-I` a wrong name is harmless, and dev mode installs the host's own hooks, over which we must not be.
#[rstest]
#[case::ignored_by_e(&["-E"], "foo", "", "True False\n")]
#[case::ignored_by_i(&["-I"], "foo", "", "True False\n")]
#[case::dev_mode_by_option(&["-X", "dev"], "", "", "False True\n")]
#[case::dev_mode_by_variable(&[], "", "0", "False True\n")]
#[case::dev_mode_ignored(&["-E"], "", "1", "True False\n")]
#[case::dev_mode_with_a_value(&["-X", "dev=1"], "malloc", "", "False True\n")]
#[case::name_in_dev_mode(&["-X", "dev"], "malloc", "", "False True\n")]
fn precedence(
    #[case] options: &[&str],
    #[case] name: &str,
    #[case] devmode: &str,
    #[case] expected: &str,
) {
    for interpreter in with_gil() {
        let mut command = preloaded(&interpreter.path);
        command.env("PYTHONMALLOC", name).env("PYTHONDEVMODE", devmode);
        let output = succeed(command.args(options).args(["-c", OURS]));
        assert_eq!(output, expected, "{interpreter} {options:?}");
    }
}

/// The library's own variable chooses where the interpreter's is ignored or says nothing, and the library answers a name that is none.
#[test]
fn a_row_that_the_interpreter_does_not_read() {
    const ROW: &str = r"
import ctypes, json, os
mine = ctypes.PyDLL(os.environ['LD_PRELOAD'])
report = ctypes.create_string_buffer(1 << 20)
mine.pymem_stats_json(report, ctypes.c_size_t(len(report)))
print(json.loads(report.value)['serves'].split()[0])
";
    for interpreter in with_gil() {
        for (options, pythonmalloc, own, expected) in [
            ("-E", "malloc", "pymalloc_debug", "pymalloc_debug\n"),
            ("-I", "foo", "malloc_debug", "malloc_debug\n"),
            ("-s", "", "malloc", "malloc\n"),
            ("-s", "malloc", "pymalloc_debug", "malloc\n"),
        ] {
            let mut command = preloaded(&interpreter.path);
            command.env("PYTHONMALLOC", pythonmalloc).env("PYMEM_MALLOC", own);
            let output = succeed(command.args([options, "-c", ROW]));
            assert_eq!(output, expected, "{interpreter} {options}");
        }
        let mut command = preloaded(&interpreter.path);
        let outcome = run(command.env("PYMEM_MALLOC", "foo").args(["-c", "print(1)"]));
        assert_eq!((outcome.status, outcome.stdout.as_str()), (Some(1), ""), "{outcome:?}");
        let said = "pymem-preload: PYMEM_MALLOC: unknown allocator \"foo\": expected default, ";
        assert!(outcome.stderr.starts_with(said), "{interpreter}: {outcome:?}");
    }
}

/// Counts are there when asked for, and speak of the first process alone.
#[test]
fn a_report_at_exit_only_on_request() {
    const PROGRAM: &str = r"
import os, subprocess, sys
assert 'PYMEM_STATS' not in os.environ
subprocess.run([sys.executable, '-c', 'pass'], check=True)
child = os.fork()
if child == 0:
    sys.exit(0)
os.waitpid(child, 0)
blocks = [str(n) * 30 for n in range(100_000)]
";
    for interpreter in interpreters() {
        let mut command = preloaded(&interpreter.path);
        let outcome = run(command.env("PYMEM_STATS", "1").args(["-W", "ignore", "-c", PROGRAM]));
        assert_eq!((outcome.status, outcome.stdout.as_str()), (Some(0), ""), "{outcome:?}");
        let lines = outcome.stderr.lines().filter(|line| line.starts_with("pymem: "));
        assert_eq!(lines.count(), 1, "{interpreter}: one report of one process: {outcome:?}");
        let count = |domain: &str, column: usize| -> u64 {
            let line = outcome.stderr.lines().find(|line| line.starts_with(domain));
            let mut words = line.expect("a line for each domain").split_whitespace();
            words.nth(column).and_then(|word| word.parse().ok()).expect("a number")
        };
        assert!(count("raw", 1) > 100, "{outcome:?}");
        assert!(count("mem", 1) > 100, "{outcome:?}");
        assert!(count("obj", 1) > 100_000, "{outcome:?}");
        assert!(count("obj", 8) > 100_000 * 100, "peak bytes: {outcome:?}");
    }
}

/// In dev mode the host's own hooks serve, and a request that nobody meets is named.
#[test]
fn a_request_in_dev_mode_is_answered() {
    for interpreter in with_gil() {
        for (variable, lines) in [("PYMEM_DEBUG", 1), ("PYMEM_LIMIT", 1), ("PYMEM_OTHER", 0)] {
            let mut command = preloaded(&interpreter.path);
            command.env(variable, "backtrace=8").args(["-W", "ignore", "-X", "dev", "-c", "pass"]);
            let outcome = run(&mut command);
            assert_eq!(outcome.status, Some(0), "{interpreter}: {outcome:?}");
            let said = outcome.stderr.lines().filter(|line| {
                line.starts_with(&format!(
                    "pymem-preload: {variable}: nothing is served in dev mode"
                ))
            });
            assert_eq!(said.count(), lines, "{interpreter}: {outcome:?}");
        }
    }
}

/// A copy of an interpreter under another name reads its command line as the original does.
#[test]
fn a_copy_of_an_interpreter_is_one() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let copy = folder.path().join("worker");
    for interpreter in with_gil() {
        let program = std::fs::read(&interpreter.path).expect("the program");
        // One with a shared libpython is a few lines that any embedder could have.
        if program.len() < 1 << 20 {
            continue;
        }
        std::fs::copy(&interpreter.path, &copy).expect("room for a copy");
        let prefix = interpreter.path.parent().and_then(|bin| bin.parent()).expect("a prefix");
        let mut command = preloaded(&copy);
        command.env("PYTHONMALLOC", "malloc").env("PYMEM_STATS", "1").env("PYTHONHOME", prefix);
        let outcome = run(command.args(["-E", "-S", "-c", "print(1)"]));
        // With `-E` it may not find its library, which is no matter of allocators.
        let serves =
            if interpreter.pydebug { "pymem: pymalloc_debug (" } else { "pymem: pymalloc (" };
        assert!(outcome.stderr.contains(serves), "{interpreter}: {outcome:?}");
    }
}

/// The host's second start finds the allocators that its first one has left blocks with.
#[test]
fn an_interpreter_may_start_twice() {
    const PROGRAM: &str = r"
import ctypes
libc = ctypes.CDLL(None)
for _ in range(2):
    for function in (ctypes.pythonapi.Py_FinalizeEx, ctypes.pythonapi.Py_Initialize):
        libc.__cxa_atexit(ctypes.cast(function, ctypes.c_void_p), None, None)
print('well')
";
    for interpreter in with_gil() {
        let alone = run(plain(&interpreter.path).args(["-S", "-c", PROGRAM]));
        if alone.status != Some(0) {
            eprintln!("skipped: {interpreter}: it does not find its library a second time");
            continue;
        }
        for row in interpreter.rows() {
            let outcome = run(python(&interpreter.path, row).args(["-S", "-c", PROGRAM]));
            assert_eq!(
                (outcome.status, outcome.stdout.as_str(), outcome.stderr.as_str()),
                (Some(0), "well\n", ""),
                "{interpreter} with {row}: {outcome:?}"
            );
        }
    }
}

/// A program with an interpreter that it never starts passes `PYTHONMALLOC` on to a child that has the library.
#[test]
fn a_child_of_a_program_that_never_starts_python_sees_the_variable() {
    const SHOW: &str =
        "import os; print(os.environ.get('PYTHONMALLOC'), 'PYMEM_PYTHONMALLOC' in os.environ)";
    for interpreter in with_gil().take(2) {
        let mut command = preloaded(&interpreter.path);
        // What such a program's environment is when it starts a child.
        command.env("PYMEM_PYTHONMALLOC", "debug").args(["-c", SHOW]);
        assert_eq!(succeed(&mut command), "debug False\n", "{interpreter}");
    }
}
