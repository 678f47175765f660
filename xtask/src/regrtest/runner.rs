//! Owns one run of CPython's test runner: its command line, and what its report says. Leaves to others what a failure means.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::modules::EXPECTED_FAILURES;

/// The status of a run in which every module passed or was skipped, and of one without a test to run.
const PASSED: [i32; 2] = [0, 4];

/// The result of a run.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) passed: bool,
    /// The failed modules with their failed tests. A module that crashed or timed out has none.
    pub(super) failed: BTreeMap<String, BTreeSet<String>>,
    /// The modules whose process was ended by a signal.
    pub(super) crashed: BTreeSet<String>,
    /// The runner's own line of counts, where its version prints one.
    pub(super) totals: Option<String>,
    pub(super) output: String,
}

/// Runs `modules`, before which options may stand, by `python -m test`, with `PYTHONMALLOC` set to `row` and no other variable of the interpreter's.
pub(super) fn regrtest(
    mut python: Command,
    row: Option<&str>,
    jobs: usize,
    modules: &[String],
) -> Result<Outcome> {
    let folder = std::env::temp_dir();
    // Some tests look for effects of these variables.
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"PYTHON") {
            python.env_remove(name);
        }
    }
    if let Some(row) = row {
        python.env("PYTHONMALLOC", row);
    }
    // With -W the runner names every failed test of a module.
    python.args(["-m", "test", "--timeout", "900", "-W", "-j"]).arg(jobs.to_string());
    for (test, _) in EXPECTED_FAILURES {
        python.args(["-i", test]);
    }
    python.args(modules).current_dir(folder).stdin(Stdio::null());
    let output = python.output().context("the test runner")?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    let passed = output.status.code().is_some_and(|code| PASSED.contains(&code));
    let failed = if passed { BTreeMap::new() } else { failures(&text) };
    let totals = text.lines().rfind(|line| line.starts_with("Total tests: "));
    let (totals, crashed) = (totals.map(str::to_owned), crashed_modules(&text));
    Ok(Outcome { passed, failed, crashed, totals, output: text })
}

/// The failed modules of a report, with their failed tests.
fn failures(report: &str) -> BTreeMap<String, BTreeSet<String>> {
    let tests = failed_tests(report);
    let of_module = |module: &str| {
        let prefix = format!("test.{}.", module.strip_prefix("test.").unwrap_or(module));
        tests.iter().filter(|test| test.starts_with(&prefix)).cloned().collect()
    };
    failed_modules(report).into_iter().map(|module| (module.clone(), of_module(&module))).collect()
}

/// The modules under the last heading `N tests failed:` of a report.
fn failed_modules(report: &str) -> BTreeSet<String> {
    let lines: Vec<&str> = report.lines().collect();
    let heading = lines.iter().rposition(|line| {
        line.ends_with("failed:")
            && line.split(' ').nth(1).is_some_and(|word| word.starts_with("test"))
    });
    let list = heading.map_or(&[][..], |heading| &lines[heading + 1..]);
    let names = list.iter().take_while(|line| line.starts_with("    "));
    names.flat_map(|line| line.split_whitespace()).map(str::to_owned).collect()
}

/// The modules of lines like `[3/59/1] test_x worker non-zero exit code (Exit code -11 (SIGSEGV))`; before Python 3.12
/// `test_x crashed` and the same end.
fn crashed_modules(report: &str) -> BTreeSet<String> {
    let lines = report.lines().filter(|line| line.contains("(Exit code -"));
    let names =
        lines.filter_map(|line| line.split_whitespace().find(|word| word.starts_with("test")));
    names.map(str::to_owned).collect()
}

/// The tests of lines like `FAIL: test_x (test.test_module.Class.test_x)`; before Python 3.11 the last part is missing. For a module
/// with a single failure, the runner prints only the traceback, which names the test.
fn failed_tests(report: &str) -> BTreeSet<String> {
    let listed = report
        .lines()
        .filter_map(|line| line.strip_prefix("FAIL: ").or_else(|| line.strip_prefix("ERROR: ")))
        .filter_map(|line| {
            let (test, rest) = line.split_once(" (")?;
            let (place, _) = rest.split_once(')')?;
            let whole = place.ends_with(&format!(".{test}"));
            Some(if whole { place.to_owned() } else { format!("{place}.{test}") })
        });
    let mut tests: BTreeSet<String> = listed.collect();
    let mut lines = report.lines();
    while let Some(line) = lines.next() {
        let Some((head, _)) = line.split_once(" failed -- Traceback") else { continue };
        let Some(module) = head.strip_prefix("test ") else { continue };
        let frame = lines.clone().take_while(|line| line.starts_with(' ')).find_map(|line| {
            let (_, function) = line.rsplit_once(", in ")?;
            function.starts_with("test").then_some(function)
        });
        if let Some(function) = frame {
            let module = module.strip_prefix("test.").unwrap_or(module);
            tests.insert(format!("test.{module}.{function}"));
        }
    }
    tests
}

#[cfg(test)]
mod tests {
    use super::{crashed_modules, failed_tests, failures};

    const REPORT: &str = "\
FAIL: test_a (test.test_gc.GCTests.test_a)
ERROR: test_b (test.test_sys.SysTest) (i=3)
== Tests result: FAILURE ==

3 tests failed:
    test_gc test_sys
    test.test_asyncio.test_tasks

3 tests OK.
";

    #[test]
    fn crashes_are_told_from_failures() {
        let report = "0:00:01 load avg: 1.13 [1/2/1] test_gc worker non-zero exit code (Exit code -11 (SIGSEGV))
0:00:02 load avg: 1.13 [2/2/2] test_sys failed (1 error)
0:00:02 load avg: 1.13 [2/2/2] test_set crashed (Exit code -6 (SIGABRT))
";
        assert!(crashed_modules(report).iter().eq(["test_gc", "test_set"]));
    }

    #[test]
    fn the_report_is_read() {
        let failed = failures(REPORT);
        assert_eq!(
            failed.keys().collect::<Vec<_>>(),
            ["test.test_asyncio.test_tasks", "test_gc", "test_sys"]
        );
        assert!(failed["test_gc"].iter().eq(["test.test_gc.GCTests.test_a"]));
        assert!(failed["test_sys"].iter().eq(["test.test_sys.SysTest.test_b"]));
        assert!(failed["test.test_asyncio.test_tasks"].is_empty());
        assert!(failures("All 3 tests OK.\n").is_empty());
    }

    #[test]
    fn a_single_failure_is_found_in_its_traceback() {
        let report = "\
test test_cmd_line failed -- Traceback (most recent call last):
  File \"/lib/test/support.py\", line 5, in wrapper
  File \"/lib/test/test_cmd_line.py\", line 348, in test_buffering
    self.assertEqual(a, b)
AssertionError: 1 != 2
";
        assert!(failed_tests(report).iter().eq(["test.test_cmd_line.test_buffering"]));
    }

    #[test]
    fn a_test_in_parts_is_one_test() {
        let parts = "FAIL: test_x (test.test_m.C.test_x) (i=1)\nFAIL: test_x (test.test_m.C.test_x) (i=2)\n";
        assert_eq!(failed_tests(parts).len(), 1);
    }
}
