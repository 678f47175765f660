//! A few modules of CPython's own test suite; `cargo xtask regrtest` runs the long list.

use rstest::rstest;

use crate::process::{interpreters, preloaded, python, run};

/// Modules that allocate much and finish in seconds.
const MODULES: &[&str] = &["test_dict", "test_list", "test_set", "test_weakref"];

#[rstest]
fn cpythons_own_modules_pass(#[values("pymalloc", "malloc", "mimalloc")] row: &str) {
    let found: Vec<_> =
        interpreters().iter().filter(|python| python.has_tests && !python.free_threaded).collect();
    // The newest one; the others run in `cargo xtask regrtest`.
    let Some(interpreter) = found.last() else {
        eprintln!("skipped: no interpreter with CPython's test package is installed");
        return;
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut command = python(&interpreter.path, row);
    command.args(["-m", "test", "-q"]).args(MODULES).current_dir(folder.path());
    let outcome = run(&mut command);
    assert_eq!(outcome.status, Some(0), "{interpreter} with {row}: {outcome:?}");
}

/// The interpreter's tests of its own debug hooks, each of which starts children with `PYTHONMALLOC` set, on ours.
#[test]
fn cpythons_tests_of_its_hooks_pass_on_ours() {
    let with_tests = interpreters().iter().filter(|python| python.has_tests && python.minor >= 11);
    let mut ran = 0;
    for interpreter in with_tests {
        let mut command = preloaded(&interpreter.path);
        command.args(["-m", "unittest", "-q", "test.test_tracemalloc"]);
        if interpreter.minor == 11 {
            let classes = ["Debug", "MallocDebug", "PymallocDebug", "Default"];
            command
                .args(classes.map(|class| format!("test.test_capi.test_misc.PyMem{class}Tests")));
        } else {
            command.arg("test.test_capi.test_mem");
        }
        let folder = tempfile::tempdir().expect("a temporary folder");
        let outcome = run(command.current_dir(folder.path()));
        assert_eq!(outcome.status, Some(0), "{interpreter}: {outcome:?}");
        ran += 1;
    }
    if ran == 0 {
        eprintln!("skipped: no interpreter from 3.11 on with CPython's test package is installed");
    }
}

/// What those tests run, with our serial numbers on: the number of the call shows how much went through our hooks, and
/// that it was ours, since a release build of CPython keeps none.
#[rstest]
#[case::overflow("pymem_buffer_overflow", "bad trailing pad byte")]
#[case::misuse("pymem_api_misuse", "bad ID: Allocated using API 'm', verified using API 'r'")]
fn the_hooks_that_report_are_ours(#[case] function: &str, #[case] message: &str) {
    for interpreter in interpreters().iter().filter(|python| python.has_tests && python.minor > 8) {
        let mut command = python(&interpreter.path, "debug");
        let program = format!("import _testcapi; _testcapi.{function}()");
        let outcome = run(command.env("PYMEM_DEBUG", "serial").args(["-c", &program]));
        assert_eq!(outcome.signal, Some(libc::SIGABRT), "{interpreter}: {outcome:?}");
        let fatal = format!("Fatal Python error: _PyMem_DebugRawFree: {message}\n");
        assert!(outcome.stderr.contains(&fatal), "{interpreter}: {outcome:?}");
        let number = outcome.stderr.split_once("The block was made by call #");
        let number = number.and_then(|(_, rest)| rest.split_once(' ')).expect("a serial number").0;
        assert!(number.parse().is_ok_and(|calls: u64| calls > 1_000), "{interpreter}: {outcome:?}");
    }
}
