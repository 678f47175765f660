//! CPython's own tests of its debug hooks; `cargo xtask regrtest` runs the other modules.

use std::fs;
use std::process::Command;

use rstest::rstest;

use crate::interpreters::Interpreter;
use crate::process::{interpreters, plain, preloaded, python, run};

/// Those from 3.11 on, where the debug hooks have tests that a release build runs; says so when there is none.
fn with_tests_of_hooks() -> Vec<&'static Interpreter> {
    let found: Vec<_> =
        interpreters().iter().filter(|python| python.has_tests && python.minor >= 11).collect();
    if found.is_empty() {
        eprintln!("skipped: no interpreter from 3.11 on with CPython's test package is installed");
    }
    found
}

/// The names of the tests of the debug hooks, a class each for the rows of the table.
fn tests_of_hooks(interpreter: &Interpreter) -> Vec<String> {
    if interpreter.minor > 11 {
        return vec![String::from("test.test_capi.test_mem")];
    }
    ["Debug", "MallocDebug", "PymallocDebug", "Default"]
        .map(|class| format!("test.test_capi.test_misc.PyMem{class}Tests"))
        .into()
}

/// The tests of what the host's `tracemalloc` sees, whose hooks lie over the library's records.
#[test]
fn cpythons_tests_of_tracemalloc_pass_on_ours() {
    for interpreter in with_tests_of_hooks() {
        let mut command = preloaded(&interpreter.path);
        command.args(["-m", "unittest", "-q", "test.test_tracemalloc"]);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let outcome = run(command.current_dir(folder.path()));
        assert_eq!(outcome.status, Some(0), "{interpreter}: {outcome:?}");
    }
}

/// What served the children of those tests, by `watch_children.py`: one line of fields a child.
fn children_of_tests_of_hooks(mut command: Command, interpreter: &Interpreter) -> Vec<Vec<String>> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    command.args(["-c", include_str!("watch_children.py"), "told"]);
    command.args(tests_of_hooks(interpreter)).env("PYMEM_DEBUG", "serial");
    let outcome = run(command.current_dir(folder.path()));
    assert_eq!(outcome.status, Some(0), "{interpreter}: {outcome:?}");
    let told = fs::read_to_string(folder.path().join("told")).expect("the children told");
    told.lines().map(|line| line.split('\t').map(String::from).collect()).collect()
}

/// Children of those tests that have a row of their own: 8 in each class.
const CHILDREN_OF_ROW: usize = 8;
/// Those of them that end in the dump of a block.
const DUMPS_OF_ROW: usize = 2;

/// The interpreter's tests of its debug hooks, each of which starts children with `PYTHONMALLOC` set, pass on ours: the `malloc` of
/// each domain is the library's in every child, by a debug row, and every block that a child dumps has the
/// number that a release build's own hooks do not keep.
#[test]
fn the_hooks_that_those_tests_run_on_are_ours() {
    for interpreter in with_tests_of_hooks() {
        let children = children_of_tests_of_hooks(preloaded(&interpreter.path), interpreter);
        for child in &children {
            let [row, files, serves, dump @ ..] = &child[..] else { panic!("{child:?}") };
            assert_eq!(files, "libpymem_preload.so,libpymem_preload.so,libpymem_preload.so");
            let served = if row == "debug" { "_debug (raw " } else { &format!("{row} (raw ") };
            assert!(serves.contains(served), "{interpreter}: {child:?}");
            assert_eq!(serves.matches(" + debug").count(), 3, "{interpreter}: {child:?}");
            assert!(matches!(dump, [] | [_]) && dump != ["no serial"], "{interpreter}: {child:?}");
        }
        let rows: &[&str] = match (interpreter.free_threaded, interpreter.minor) {
            (false, ..=12) => &["debug", "malloc_debug", "pymalloc_debug"],
            (false, _) => &["debug", "malloc_debug", "pymalloc_debug", "mimalloc_debug"],
            (true, _) => &["debug", "mimalloc_debug"],
        };
        for row in rows {
            let of_row: Vec<_> = children.iter().filter(|child| child[0] == *row).collect();
            let dumps = of_row.iter().filter(|child| child.len() == 4).count();
            assert!(
                of_row.len() >= CHILDREN_OF_ROW && dumps >= DUMPS_OF_ROW,
                "{interpreter} with {row}: {of_row:?}"
            );
        }
    }
}

/// Without the library the same tests pass on the interpreter's hooks: the evidence above tells the one from the other.
#[test]
fn the_interpreters_own_hooks_are_told_from_ours() {
    let Some(interpreter) = with_tests_of_hooks().pop() else { return };
    let children = children_of_tests_of_hooks(plain(&interpreter.path), interpreter);
    assert!(children.iter().all(|child| !child[1].contains("pymem") && child[2] == "nothing"));
    assert!(children.iter().any(|child| child.get(3).is_some_and(|dump| dump == "no serial")));
}

/// What those tests run, with our serial numbers on: the number of the call shows how much went through our hooks, and
/// that it was ours, since a release build of CPython keeps none.
#[rstest]
#[case::overflow("pymem_buffer_overflow", "bad trailing pad byte")]
#[case::misuse("pymem_api_misuse", "bad ID: Allocated using API 'm', verified using API 'r'")]
fn the_hooks_that_report_are_ours(#[case] function: &str, #[case] message: &str) {
    for interpreter in interpreters().iter().filter(|python| python.has_tests) {
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
