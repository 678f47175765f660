//! The debug rows on our hooks: reports word for word, through the host's fatal error, with its traceback.

use rstest::rstest;

use crate::process::{Outcome, few_with_gil, free_threaded, python, run, succeed, with_gil};

/// Mem blocks by the interpreter's own functions, so that the hooks of the row see them.
pub(crate) const PRELUDE: &str = r"
import ctypes, sys
api = ctypes.pythonapi
for name in ('PyMem_Malloc', 'PyMem_Realloc', 'PyObject_Malloc', 'PyMem_RawMalloc'):
    getattr(api, name).restype = ctypes.c_void_p
def malloc(n): return api.PyMem_Malloc(ctypes.c_size_t(n))
def free(p): api.PyMem_Free(ctypes.c_void_p(p))
def write(p, byte): ctypes.c_ubyte.from_address(p).value = byte
";

pub(crate) const ROWS: [&str; 4] = ["debug", "malloc_debug", "pymalloc_debug", "mimalloc_debug"];

fn report(path: &std::path::Path, row: &str, options: &[&str], bug: &str) -> Outcome {
    let program = format!("{PRELUDE}{bug}");
    run(python(path, row).args(options).args(["-c", &program]))
}

/// A traceback follows the report, since the host ends the process.
pub(crate) fn ends_with_traceback(outcome: &Outcome, message: &str) {
    assert_eq!((outcome.signal, outcome.stdout.as_str()), (Some(libc::SIGABRT), ""), "{outcome:?}");
    let fatal = format!(
        "\nFatal Python error: {message}\nPython runtime state: initialized\n\nCurrent thread 0x"
    );
    assert!(outcome.stderr.contains(&fatal), "{fatal:?} in {outcome:?}");
    assert!(outcome.stderr.contains(" (most recent call first):\n  File "), "{outcome:?}");
}

#[rstest]
#[case::overflow("p = malloc(16); write(p + 16, 0x78); free(p)", "bad trailing pad byte")]
#[case::underflow("p = malloc(16); write(p - 1, 0x78); free(p)", "bad leading pad byte")]
#[case::wrong_domain(
    "api.PyObject_Free(ctypes.c_void_p(malloc(16)))",
    "bad ID: Allocated using API 'm', verified using API 'o'"
)]
fn violations_end_in_the_hosts_fatal_error(#[case] bug: &str, #[case] message: &str) {
    for interpreter in few_with_gil() {
        for row in ROWS {
            let outcome = report(&interpreter.path, row, &[], bug);
            ends_with_traceback(&outcome, &format!("_PyMem_DebugRawFree: {message}"));
            assert!(
                outcome.stderr.starts_with("Reported call made by (most recent call first):\n  0x")
                    && outcome.stderr.contains("\n\nDebug memory block at address p=0x")
                    && outcome.stderr.contains(": API 'm'\n    16 bytes originally requested\n")
                    && outcome.stderr.contains(
                        "\n\nEnable tracemalloc to get the memory block allocation traceback\n\nFatal"
                    ),
                "{interpreter} with {row}: {outcome:?}"
            );
        }
    }
}

/// CPython itself dies of SIGSEGV in the middle of this report.
#[test]
fn a_double_free_is_reported() {
    for interpreter in few_with_gil() {
        for row in ROWS {
            let outcome = report(&interpreter.path, row, &[], "p = malloc(64); free(p); free(p)");
            assert_eq!(
                outcome.signal,
                Some(libc::SIGABRT),
                "{interpreter} with {row}: {outcome:?}"
            );
            let fatal = "Fatal Python error: _PyMem_DebugRawFree: ";
            assert!(outcome.stderr.contains(fatal), "{interpreter} with {row}: {outcome:?}");
        }
    }
}

#[test]
fn the_gil_must_be_held() {
    // `CDLL` lets the GIL go during the call, `PyDLL` does not.
    let bug = "free_threaded = ctypes.CDLL(None); free_threaded.PyMem_Malloc(ctypes.c_size_t(8))";
    for interpreter in with_gil() {
        let outcome = report(&interpreter.path, "debug", &[], bug);
        assert_eq!(outcome.signal, Some(libc::SIGABRT), "{interpreter}: {outcome:?}");
        let fatal = "Fatal Python error: _PyMem_DebugMalloc: Python memory allocator called without holding the GIL\n";
        assert!(outcome.stderr.contains(fatal), "{interpreter}: {outcome:?}");
    }
}

/// A thread without a state calls while another thread, which waits for it, holds the GIL.
#[test]
fn the_gil_must_be_held_by_the_caller() {
    let bug = r"
shared = ctypes.PyDLL(None)
free(malloc(8))
thread = ctypes.c_ulong()
shared.pthread_create(ctypes.byref(thread), None, shared.PyMem_Malloc, ctypes.c_void_p(8))
shared.pthread_join(thread, None)
";
    for interpreter in with_gil() {
        let outcome = report(&interpreter.path, "debug", &[], bug);
        assert_eq!(outcome.signal, Some(libc::SIGABRT), "{interpreter}: {outcome:?}");
        let fatal = "Fatal Python error: _PyMem_DebugMalloc: Python memory allocator called without holding the GIL\n";
        assert!(outcome.stderr.contains(fatal), "{interpreter}: {outcome:?}");
    }
}

/// Each of the two sites has the lines and functions of the program, most recent call first.
#[rstest]
#[case::overflow("overflow", "bad trailing pad byte", 13, None)]
#[case::double_free("double_free", "bad ID", 18, Some(19))]
#[case::use_after_free("use_after_free", "write to a freed block", 23, Some(24))]
fn python_frames_of_allocation_and_free(
    #[case] function: &str,
    #[case] message: &str,
    #[case] made: u32,
    #[case] freed: Option<u32>,
) {
    const PROGRAM: &str = r"
import ctypes, sys
api = ctypes.pythonapi
api.PyMem_Malloc.restype = ctypes.c_void_p
def make(size):
    return api.PyMem_Malloc(ctypes.c_size_t(size))
def give_back(p):
    api.PyMem_Free(ctypes.c_void_p(p))
def write(p, byte):
    ctypes.c_ubyte.from_address(p).value = byte

def overflow():
    p = make(64)
    write(p + 64, 0x78)
    give_back(p)

def double_free():
    p = make(64)
    give_back(p)
    give_back(p)

def use_after_free():
    p = make(64)
    give_back(p)
    write(p + 3, 0x78)

globals()[sys.argv[1]]()
";
    let folder = tempfile::tempdir().expect("a temporary folder");
    let app = folder.path().join("app.py");
    std::fs::write(&app, PROGRAM).expect("a new file");
    let app = app.to_str().expect("a name in UTF-8");
    let site = |what: &str, own_line: u32, own: &str, line: u32| {
        format!(
            "\nMemory block {what} by (most recent call first):\n  File \"{app}\", line {own_line}, in {own}\n  \
             File \"{app}\", line {line}, in {function}\n  File \"{app}\", line 27, in <module>\n"
        )
    };
    for interpreter in few_with_gil() {
        let mut command = python(&interpreter.path, "debug");
        command.env("PYMEM_DEBUG", "quarantine=16M,backtrace=8");
        let outcome = run(command.args([app, function]));
        assert_eq!(outcome.signal, Some(libc::SIGABRT), "{interpreter}: {outcome:?}");
        let fatal = format!("\nFatal Python error: _PyMem_DebugRawFree: {message}");
        assert!(outcome.stderr.contains(&fatal), "{interpreter}: {outcome:?}");
        let allocated = site("allocated", 6, "make", made);
        assert!(outcome.stderr.contains(&allocated), "{allocated:?} of {interpreter}: {outcome:?}");
        match freed.map(|line| site("freed", 8, "give_back", line)) {
            Some(freed) => {
                assert!(outcome.stderr.contains(&freed), "{freed:?} of {interpreter}: {outcome:?}");
            }
            None => assert!(!outcome.stderr.contains("\nMemory block freed by"), "{outcome:?}"),
        }
    }
}

/// Without the GIL `realloc` erases nothing, as other threads may still read the block that it gives up.
#[test]
fn realloc_erases_nothing_without_the_gil() {
    let program = format!(
        "{PRELUDE}realloc = api.PyMem_Realloc; realloc.argtypes = [ctypes.c_void_p, ctypes.c_size_t]\n\
         p = malloc(1000); ctypes.memset(p, 0x61, 1000); q = realloc(p, 900_000)\n\
         assert p != q\nprint(ctypes.string_at(p + 16, 8), ctypes.string_at(q, 8))"
    );
    for interpreter in free_threaded() {
        let mut command = python(&interpreter.path, "debug");
        let text = succeed(command.args(["-c", &program]));
        assert_eq!(text, "b'aaaaaaaa' b'aaaaaaaa'\n", "{interpreter}");
    }
}

/// The host's `tracemalloc` knows where the block was allocated.
#[test]
fn tracebacks_come_from_the_hosts_tracemalloc() {
    let bug = "p = malloc(16)\nwrite(p + 16, 0x78)\nfree(p)\n";
    for interpreter in with_gil() {
        let outcome = report(&interpreter.path, "debug", &["-X", "tracemalloc=3"], bug);
        ends_with_traceback(&outcome, "_PyMem_DebugRawFree: bad trailing pad byte");
        let frames = "\n\nMemory block allocated at (most recent call first):\n  File \"<string>\", line 6\n  \
                      File \"<string>\", line 9\n\nFatal Python error: ";
        assert!(outcome.stderr.contains(frames), "{interpreter}: {outcome:?}");
    }
}

/// The stock hooks of a release build keep no serial numbers: a report with one comes from ours.
#[test]
fn options_come_from_the_environment() {
    let bug = format!("{PRELUDE}p = malloc(16); write(p + 16, 0x78); free(p)");
    for interpreter in with_gil() {
        let mut command = python(&interpreter.path, "debug");
        let outcome = run(command.env("PYMEM_DEBUG", "serial").args(["-c", &bug]));
        assert_eq!(outcome.signal, Some(libc::SIGABRT), "{interpreter}: {outcome:?}");
        assert!(
            outcome.stderr.contains("\n    The block was made by call #"),
            "{interpreter}: {outcome:?}"
        );

        let mut command = python(&interpreter.path, "debug");
        let outcome = run(command.env("PYMEM_DEBUG", "bogus").args(["-c", "print(1)"]));
        assert_eq!((outcome.status, outcome.stdout.as_str()), (Some(1), ""), "{outcome:?}");
        let sentence = "pymem-preload: PYMEM_DEBUG: unknown option `bogus`: expected one of ";
        assert!(outcome.stderr.starts_with(sentence), "{interpreter}: {outcome:?}");
        assert_eq!(outcome.stderr.lines().count(), 1, "{interpreter}: {outcome:?}");
    }
}

/// A native stack begins with the program's frames, and the reported call has one, whatever is switched on.
#[rstest]
fn native_stacks_do_not_begin_with_the_library(
    #[values("", "strict", "backtrace=8")] options: &str,
    #[values(
        "ctypes.CDLL(None).PyMem_Malloc(ctypes.c_size_t(8))",
        "p = malloc(8); free(p); free(p)"
    )]
    bug: &str,
) {
    for interpreter in with_gil() {
        let program = format!("{PRELUDE}{bug}");
        let outcome = run(python(&interpreter.path, "debug")
            .env("PYMEM_DEBUG", options)
            .args(["-c", &program]));
        assert_eq!(outcome.signal, Some(libc::SIGABRT), "{interpreter}: {outcome:?}");
        let (_, stack) = outcome
            .stderr
            .split_once("Reported call made by (most recent call first):\n")
            .unwrap_or_else(|| panic!("{interpreter}: {outcome:?}"));
        let mut frames = stack.lines().skip_while(|line| line.starts_with("  File "));
        let first = frames.next().unwrap_or_default();
        assert!(first.starts_with("  0x") && !first.contains("pymem_preload"), "{outcome:?}");
    }
}

/// What start-up leaves is no leak, nor is what the interpreter's end leaves, and a leaked block is found by its place.
#[test]
fn leaks_begin_with_the_program() {
    let leak = "
def leaky():
    malloc(12345)
leaky()
";
    for interpreter in few_with_gil() {
        let report = |options: &str, program: &str| {
            let mut command = python(&interpreter.path, "debug");
            run(command.env("PYMEM_DEBUG", options).args(["-c", program]))
        };
        let clean = report("leaks,leak_exit=7", "pass");
        assert_eq!((clean.status, clean.stderr.as_str()), (Some(0), ""), "{interpreter}");
        let outcome = report("leak_exit=7,leak_site=in leaky", &format!("{PRELUDE}{leak}"));
        let one = "memdebug: 1 blocks with 12345 bytes are still live.\n\n\
                   1 blocks with 12345 bytes in the mem domain, allocated by (most recent call first):\n  File \"";
        assert!(outcome.stderr.starts_with(one), "{interpreter}: {outcome:?}");
        assert_eq!(outcome.status, Some(7), "{interpreter}: {outcome:?}");
    }
}

/// Reports go to a file a process, with the host's part; a process without a report makes none.
#[test]
fn reports_go_to_files() {
    let bug = "
import os
if (child := os.fork()) == 0:
    p = malloc(16); write(p + 16, 0x78); free(p)
status = os.waitpid(child, 0)[1]
print(os.getpid(), child, os.WTERMSIG(status), flush=True)
os.chdir('/')
free(malloc(8) + 16)
";
    for interpreter in with_gil() {
        let folder = tempfile::tempdir().expect("a folder");
        let in_folder = |program: &str| {
            let mut command = python(&interpreter.path, "debug");
            command.env("PYMEM_REPORT", "report.txt").current_dir(&folder);
            run(command.args(["-W", "ignore", "-c", program]))
        };
        let clean = in_folder("print()");
        assert_eq!((clean.status, clean.stderr.as_str()), (Some(0), ""), "{interpreter}");
        assert_eq!(std::fs::read_dir(&folder).expect("the folder").count(), 0, "{interpreter}");
        let outcome = in_folder(&format!("{PRELUDE}{bug}"));
        assert_eq!(outcome.signal, Some(libc::SIGABRT), "{interpreter}: {outcome:?}");
        assert_eq!(outcome.stderr, "", "{interpreter}");
        let words: Vec<_> = outcome.stdout.split_whitespace().collect();
        let [parent, child, signal] = words[..] else { panic!("{interpreter}: {outcome:?}") };
        assert_eq!(signal, libc::SIGABRT.to_string(), "{interpreter}: {outcome:?}");
        for (process, message) in [(parent, "bad ID"), (child, "bad trailing pad byte")] {
            let path = folder.path().join(format!("report.txt.{process}"));
            let report =
                String::from_utf8_lossy(&std::fs::read(path).expect("a file")).into_owned();
            let fatal = format!("Fatal Python error: _PyMem_DebugRawFree: {message}");
            for text in ["Reported call made by", "Debug memory block", &fatal, "line 7 in free"] {
                assert!(report.contains(text), "{interpreter}: {text:?} in {report}");
            }
        }
    }
}

/// With `continue` a report is not the end, and the faulty call has no effect.
#[test]
fn a_program_may_go_on_after_a_report() {
    let bug =
        "p = malloc(16); write(p + 16, 0x78); free(p); write(p + 16, 0xfd); free(p); print('done')";
    for interpreter in with_gil() {
        let program = format!("{PRELUDE}{bug}");
        let outcome = run(python(&interpreter.path, "debug")
            .env("PYMEM_DEBUG", "continue")
            .args(["-c", &program]));
        assert_eq!((outcome.status, outcome.stdout.as_str()), (Some(0), "done\n"), "{outcome:?}");
        assert_eq!(outcome.stderr.matches("bad trailing pad byte").count(), 1, "{outcome:?}");
    }
}
