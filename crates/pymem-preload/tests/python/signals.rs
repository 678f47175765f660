//! Signals in an interpreter that the hooks watch: whose report or end each of them is.

use std::thread;

use rstest::rstest;

use crate::debugging::{PRELUDE, ROWS};
use crate::process::{
    compiled, few_with_gil, is_newest, library, plain, python, run, tries_all, with_gil,
};

/// `faulthandler` is on, and a thread other than the main one makes the access.
#[rstest]
#[case::guard_page(
    "guard=1/20",
    "for _ in range(999): p = malloc(64); free(p); write(p, 0xdd)",
    "use of a freed block"
)]
#[case::wild_pointer("", "free(0x7_0000_0040)", "bad ID")]
fn reports_of_threads_are_not_lost_to_faulthandler(
    #[case] options: &str,
    #[case] bug: &str,
    #[case] message: &str,
) {
    let bug = format!(
        "import faulthandler, threading\nfaulthandler.enable()\ndef run():\n    {bug}\n\
         thread = threading.Thread(target=run)\nthread.start()\nthread.join()\n"
    );
    let message = message.replace("bad ID", "pointer that is no block");
    for interpreter in few_with_gil() {
        for row in ROWS {
            let program = format!("{PRELUDE}{bug}");
            let outcome = run(python(&interpreter.path, row)
                .env("PYMEM_DEBUG", options)
                .args(["-c", &program]));
            assert_eq!(
                outcome.signal,
                Some(libc::SIGABRT),
                "{interpreter} with {row}: {outcome:?}"
            );
            let fatal = "Fatal Python error: _PyMem_Debug";
            assert!(outcome.stderr.contains(fatal), "{interpreter} with {row}: {outcome:?}");
            assert!(outcome.stderr.contains(&message), "{interpreter} with {row}: {outcome:?}");
        }
    }
}

/// A signal that is sent or raised ends a process with `faulthandler` as it ends a plain one.
#[rstest]
fn a_signal_that_was_sent_ends_the_process(
    #[values(("debug", ""), ("pymalloc", "guard=1/100"))] row: (&str, &str),
    #[values(
        "os.kill(os.getpid(), signal.{})",
        "signal.raise_signal(signal.{})",
        "thread = threading.Thread(target=signal.raise_signal, args=(signal.{},))\nthread.start()\nthread.join()"
    )]
    program: &str,
    #[values(("SIGSEGV", libc::SIGSEGV), ("SIGBUS", libc::SIGBUS), ("SIGABRT", libc::SIGABRT))]
    signal: (&str, i32),
) {
    let imports = "import faulthandler, os, signal, threading\n";
    let program = program.replace("{}", signal.0);
    for interpreter in few_with_gil() {
        for faulthandler in ["", "faulthandler.enable()\n"] {
            let program = format!("{imports}{faulthandler}{program}");
            let outcome = run(python(&interpreter.path, row.0)
                .env("PYMEM_DEBUG", row.1)
                .args(["-c", &program]));
            assert_eq!(outcome.signal, Some(signal.1), "{interpreter}, {program}: {outcome:?}");
            let dumped = outcome.stderr.contains("Fatal Python error: ");
            assert_eq!(dumped, !faulthandler.is_empty(), "{interpreter}, {program}: {outcome:?}");
        }
    }
}

/// A block of `PyMem_Malloc` that is given to C's `free` is named, of one of another domain the call; and by whom it was made.
#[rstest]
fn blocks_given_to_the_c_library(
    #[values(false, true)] faulthandler: bool,
    #[values("PyMem_RawMalloc", "PyMem_Malloc", "PyObject_Malloc")] function: &str,
) {
    let enable = if faulthandler { "import faulthandler; faulthandler.enable()\n" } else { "" };
    let bug = format!(
        "{enable}make = ctypes.pythonapi.{function}\nmake.restype = ctypes.c_void_p\nlibc = ctypes.CDLL(None)\n\
         libc.free.argtypes = [ctypes.c_void_p]\np = make(ctypes.c_size_t(600))\nprint(hex(p), flush=True)\nlibc.free(p)\n"
    );
    for interpreter in with_gil() {
        // Raw blocks of any row are the C library's, as those of `malloc_debug` are.
        let all = tries_all() || is_newest(interpreter);
        for row in ROWS.into_iter().filter(|row| all || matches!(*row, "debug" | "mimalloc_debug"))
        {
            let outcome =
                run(python(&interpreter.path, row).args(["-c", &format!("{PRELUDE}{bug}")]));
            let context = format!("{interpreter} with {row}: {outcome:?}");
            assert_eq!(outcome.signal, Some(libc::SIGABRT), "{context}");
            let errors = &outcome.stderr;
            assert!(errors.contains("/libc.so.6+0x"), "{context}");
            assert!(errors.contains("  File \"<string>\", line "), "{context}");
            let is_named = errors.contains(&format!("p={}: API '", outcome.stdout.trim()));
            assert_eq!(is_named, errors.contains("Debug memory block"), "{context}");
            assert!(is_named || function != "PyMem_Malloc", "{context}");
            let message = match is_named {
                true => "free: block of another allocator, given to the C library",
                false => "free: pointer that the C library refused",
            };
            assert!(errors.contains(message), "{context}");
        }
    }
}

/// A handler in C that ends the process while the very thread counts a call, and holds the lock of the counts.
#[test]
fn a_handler_ends_the_process_in_the_middle_of_a_call() {
    const HANDLER: &str = r"
#include <signal.h>
#include <sys/time.h>
#include <unistd.h>
static void end(int number) { _exit(7); }
int arm(int microseconds) {
    struct itimerval once = {{0, 0}, {0, microseconds}};
    signal(SIGALRM, end);
    return setitimer(ITIMER_REAL, &once, 0);
}
";
    const PROGRAM: &str = "
import ctypes, sys
ctypes.CDLL(sys.argv[1]).arm(int(sys.argv[2]))
while True:
    [bytes(1000) for _ in range(1000)]
";
    let folder = tempfile::tempdir().expect("a temporary folder");
    let Some(handler) = compiled(folder.path(), HANDLER, &["-shared", "-fPIC"]) else { return };
    for interpreter in few_with_gil().filter(|python| is_newest(python)) {
        let end = |number: usize| {
            // What hangs is killed; what gives up does so before.
            let mut command = plain("timeout");
            command.args(["-s", "KILL", "60"]).arg(&interpreter.path).args(["-c", PROGRAM]);
            command.arg(&handler).arg((20_000 + 1_009 * number).to_string());
            command.env("LD_PRELOAD", library()).env("PYTHONMALLOC", "pymalloc");
            run(command.env("PYMEM_STATS", folder.path().join(number.to_string()))).status
        };
        let ends: Vec<_> = thread::scope(|scope| {
            let all: Vec<_> = (0..12).map(|number| scope.spawn(move || end(number))).collect();
            all.into_iter().map(|one| one.join().expect("it asserts nothing")).collect()
        });
        assert_eq!(ends, [Some(7); 12], "{interpreter}");
    }
}
