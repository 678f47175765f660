//! A few modules of CPython's own test suite; `cargo xtask regrtest` runs the long list.

use rstest::rstest;

use crate::process::{interpreters, python, run};

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
