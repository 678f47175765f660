//! Loading the library where it must do nothing: programs without Python, and a Python that is already running.

use std::process::Command;

use rstest::rstest;

use crate::process::{interpreters, library, plain, preloaded, python, run, succeed};

#[test]
fn programs_without_python_run_on() {
    for program in ["true", "ls", "env"] {
        let outcome = run(preloaded(program).env("PYTHONMALLOC", "nonsense"));
        assert_eq!((outcome.status, outcome.stderr.as_str()), (Some(0), ""), "{program}");
    }
    let shown = succeed(preloaded("env").env("PYTHONMALLOC", "debug").env("PYMEM_STATS", "1"));
    assert!(shown.contains("PYTHONMALLOC=debug\n") && shown.contains("PYMEM_STATS=1\n"), "{shown}");
}

/// mimalloc, which tells of its start when it is asked to, starts where it serves alone: in another process it would take memory for nothing.
#[test]
fn mimalloc_starts_where_it_serves() {
    // Later interpreters bring a mimalloc of their own, which tells too.
    for interpreter in interpreters().iter().filter(|python| python.minor < 13) {
        let start = |row| {
            let mut command = python(&interpreter.path, row);
            run(command.env("MIMALLOC_VERBOSE", "1").args(["-c", "pass"])).stderr
        };
        assert_eq!(start("pymalloc"), "", "{interpreter}");
        assert!(start("mimalloc").contains("mimalloc: "), "{interpreter}");
    }
}

/// Programs that the interpreter starts, and memory that is not mimalloc's, have the system's huge pages as before.
#[rstest]
fn huge_pages_are_forbidden_to_nobody_else(#[values("pymalloc", "mimalloc")] row: &str) {
    const PROGRAM: &str = "import ctypes; print(ctypes.CDLL(None).prctl(42, 0, 0, 0, 0))";
    for interpreter in interpreters() {
        let is_forbidden = |mut command: Command| succeed(command.args(["-c", PROGRAM]));
        let plain = is_forbidden(plain(&interpreter.path));
        assert_eq!(is_forbidden(python(&interpreter.path, row)), plain, "{interpreter}");
    }
}

/// `ctypes.CDLL` of the library changes no record and prints nothing; `pymem_setup` answers that it is too late.
#[test]
fn a_running_interpreter_is_left_alone() {
    const PROGRAM: &str = r"
import ctypes, sys
class Record(ctypes.Structure):
    _fields_ = [(n, ctypes.c_void_p) for n in ('ctx', 'malloc', 'calloc', 'realloc', 'free')]
def records():
    found = []
    for domain in range(3):
        record = Record()
        ctypes.pythonapi.PyMem_GetAllocator(domain, ctypes.byref(record))
        found.append([getattr(record, n) for n, _ in Record._fields_])
    return found
before = records()
mine = ctypes.CDLL(sys.argv[1])
answers = [mine.pymem_setup(name) for name in (b'malloc', b'malloc', None, b'', b'nonsense')]
print(records() == before, answers)
record = Record()
mine.pymem_get_allocator(2, ctypes.byref(record))
malloc = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)(record.malloc)
free = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(record.free)
blocks = [malloc(record.ctx, n) for n in range(600)]
print(len(set(blocks)) == 600)
for block in blocks: free(record.ctx, block)
";
    for interpreter in interpreters() {
        for preload in [false, true] {
            let mut command =
                if preload { preloaded(&interpreter.path) } else { plain(&interpreter.path) };
            let output = succeed(command.args(["-c", PROGRAM]).arg(library()));
            assert_eq!(output, "True [-2, -2, -2, -2, -1]\nTrue\n", "{interpreter}");
        }
    }
}
