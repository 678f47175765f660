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
        // 3.8 does not name the function.
        if interpreter.minor > 8 {
            assert_eq!(outcome.stderr, UNKNOWN_ALLOCATOR, "{interpreter} with {name}");
        }
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
blocks = [bytes(100) for _ in range(100_000)]
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
