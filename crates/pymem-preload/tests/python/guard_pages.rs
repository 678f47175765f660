//! Guard pages in programs: what they find, in rows with hooks and without, and that a program without a bug sees nothing of them.

use rstest::rstest;

use crate::debugging::{PRELUDE, ends_with_traceback};
use crate::process::{
    Outcome, few_with_gil, free_threaded, is_newest, preloaded, python, run, succeed, with_gil,
};

/// Reads of misused blocks, which nobody sees but of the guarded ones. `None` leaves the configuration to the host.
fn guarded(path: &std::path::Path, row: Option<&str>, options: &str, bug: &str) -> Outcome {
    let program = format!(
        "{PRELUDE}
def make(size):
    return malloc(size)
def read(p):
    return ctypes.c_ubyte.from_address(p).value
for _ in range(200_000):
    p = make(64)
    {bug}
print('nothing was seen')
"
    );
    let mut command = match row {
        Some(row) => python(path, row),
        None => preloaded(path),
    };
    run(command.env("PYMEM_DEBUG", options).args(["-c", &program]))
}

/// Rows without hooks have guard pages alone, of which a program without a bug sees nothing.
#[rstest]
#[case::use_after_free(
    "free(p); read(p + 3)",
    "use after free: read at p+3",
    "use of a freed block"
)]
#[case::overflow("read(p + 64); free(p)", "overflow: read at p+64", "access outside a block")]
fn guard_pages_in_production(#[case] bug: &str, #[case] found: &str, #[case] message: &str) {
    for interpreter in few_with_gil() {
        for row in [None, Some("pymalloc"), Some("malloc"), Some("mimalloc")] {
            let outcome = guarded(&interpreter.path, row, "guard=1/50", bug);
            ends_with_traceback(&outcome, &format!("_PyMem_DebugGuardPage: {message}"));
            let line = format!("\nmemdebug: {found} of a guarded block.\n");
            assert!(outcome.stderr.contains(&line), "{interpreter} with {row:?}: {outcome:?}");
            let api = ": API 'm'\n    64 bytes originally requested\n";
            assert!(outcome.stderr.contains(api), "{interpreter} with {row:?}: {outcome:?}");
        }
    }
}

#[test]
fn guard_pages_name_the_python_lines() {
    for interpreter in with_gil() {
        let bug = "free(p); read(p + 3)";
        let outcome = guarded(&interpreter.path, Some("pymalloc"), "guard=1/50,backtrace=8", bug);
        assert_eq!(outcome.signal, Some(libc::SIGABRT), "{interpreter}: {outcome:?}");
        let site = |what, line, function| {
            format!(
                "\nMemory block {what} by (most recent call first):\n  File \"<string>\", line {line}, in {function}\n"
            )
        };
        let sites = [site("allocated", 6, "malloc"), site("freed", 7, "free")];
        for site in sites {
            assert!(outcome.stderr.contains(&site), "{site:?} of {interpreter}: {outcome:?}");
        }
    }
}

/// What else the variable asks for is for configurations with hooks: with `guard` it is refused, without it stays unused.
#[test]
fn guard_pages_come_alone_in_production() {
    for interpreter in with_gil() {
        for row in ["pymalloc", "malloc", "mimalloc"] {
            let mut command = python(&interpreter.path, row);
            let command =
                command.env("PYMEM_DEBUG", "guard=1/5000,strict").args(["-c", "print(1)"]);
            let outcome = run(command);
            let sentence =
                "pymem-preload: PYMEM_DEBUG: `strict` needs the debug hooks, and there are none: ";
            assert_eq!((outcome.status, outcome.stdout.as_str()), (Some(1), ""), "{outcome:?}");
            assert!(outcome.stderr.starts_with(sentence), "{interpreter}: {outcome:?}");
            assert_eq!(outcome.stderr.lines().count(), 1, "{interpreter}: {outcome:?}");
            let mut command = python(&interpreter.path, row);
            let command = command.env("PYMEM_DEBUG", "strict").args(["-c", "print(1)"]);
            assert_eq!(succeed(command), "1\n");
        }
    }
}

/// Threads, forks and many blocks, at rates that fill the pages: nothing is reported, and no child waits for a lock.
#[test]
fn guard_pages_without_a_bug() {
    let program = r"
import os, threading
def work():
    for round in range(10):
        data = [str(i) * (i % 50) for i in range(500)]
        data.sort()
        del data
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for _ in range(10):
    child = os.fork()
    if child == 0:
        data = [bytes(i) for i in range(2000)]
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
for thread in threads: thread.join()
print('well')
";
    for interpreter in few_with_gil() {
        let rows: &[&str] = match is_newest(interpreter) {
            true => &["pymalloc", "malloc", "mimalloc"],
            false => &["pymalloc"],
        };
        for row in rows {
            for options in ["guard=1/1", "guard=1/20,backtrace=4"] {
                let mut command = python(&interpreter.path, row);
                // The newest say that a process of several threads should not fork.
                let command = command.env("PYMEM_DEBUG", options).args(["-W", "ignore"]);
                assert_eq!(succeed(command.args(["-c", program])), "well\n", "{interpreter}");
            }
        }
    }
}

/// The picture and the statistics are those of a row with guard pages.
#[test]
fn guard_pages_beside_other_requests() {
    let Some(interpreter) = with_gil().last() else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let bug = format!(
        "{PRELUDE}for _ in range(100_000): p = malloc(64); free(p); ctypes.c_ubyte.from_address(p).value"
    );
    for row in ["pymalloc", "mimalloc"] {
        let mut command = python(&interpreter.path, row);
        command.env("PYMEM_DEBUG", "guard=1/50").env("PYMEM_STATS", "1");
        let outcome = run(command.args(["-c", "kept = [bytes(40) for _ in range(100_000)]"]));
        assert!(outcome.stderr.contains(" + guard pages"), "{row}: {outcome:?}");
        let numbers = outcome.stderr.split("\nguard pages: ").nth(1).expect("a line of coverage");
        let numbers: Vec<usize> =
            numbers.split(' ').filter_map(|word| word.parse().ok()).take(4).collect();
        // Of the blocks, some interpreters leave none at the end.
        assert!(numbers[1] >= 4096, "{row}: {outcome:?}");
        let mut command = python(&interpreter.path, row);
        command.env("PYMEM_DEBUG", "guard=1/50").env("PYMEM_HEAP_MAP", folder.path().join("map"));
        let outcome = run(command.args(["-c", &bug]));
        assert_eq!(outcome.signal, Some(libc::SIGABRT), "{row}: {outcome:?}");
        assert!(outcome.stderr.contains("memdebug: use after free: read at p+0"), "{outcome:?}");
    }
}

/// What the pools of a drawn heap have from raw, for a request of no bytes, is no block of raw's.
#[test]
fn guard_pages_of_raw_do_not_see_what_drawn_pools_take() {
    let Some(interpreter) = with_gil().last() else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let program = format!("{PRELUDE}for _ in range(1000): free(malloc(0))\nprint('well')");
    let mut command = python(&interpreter.path, "pymalloc");
    command.env("PYMEM_DEBUG", "guard=1/2").env("PYMEM_HEAP_MAP", folder.path().join("map"));
    assert_eq!(succeed(command.args(["-c", &program])), "well\n", "{interpreter}");
}

/// Without the GIL mem is guarded over the host's own record, and objects are left alone.
#[test]
fn guard_pages_without_the_gil() {
    for interpreter in free_threaded() {
        let outcome = guarded(&interpreter.path, None, "guard=1/50", "free(p); read(p + 3)");
        assert_eq!(outcome.signal, Some(libc::SIGABRT), "{interpreter}: {outcome:?}");
        let line = "\nmemdebug: use after free: read at p+3 of a guarded block.\n";
        assert!(outcome.stderr.contains(line), "{interpreter}: {outcome:?}");
        let mut command = preloaded(&interpreter.path);
        command
            .env("PYMEM_DEBUG", "guard=1/2")
            .args(["-c", "import json; print(len(json.dumps([1] * 9)))"]);
        assert_eq!(succeed(&mut command), "27\n", "{interpreter}");
    }
}
