//! Owns `cargo xtask regrtest`: runs CPython's own test suite under the preload, on every interpreter that has it, in every row.
//!
//! Only differences count: a module is broken if it fails with the library and passes without it. Tests that fail are run again
//! without the library. Where one passes, its module runs again alone, with the library and without it, because some of CPython's tests
//! miss their time on a loaded machine.

mod modules;
mod runner;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use signal_hook::consts::SIGINT;
use signal_hook::flag;

use self::modules::{
    EXCLUDED, EXPECTED_FAILURES, EXPECTED_IN_ROWS, EXPECTED_WITH_OPTIONS, MODULES, is_excluded,
};
use self::runner::{Outcome, regrtest};
use crate::python::{self, Interpreter};

/// The rows of a run of the whole suite. The other rows use the same allocators.
const ROWS_OF_A_FULL_RUN: [&str; 4] = ["pymalloc", "mimalloc", "pymalloc_debug", "mimalloc_debug"];

/// Modules without a bug, so that no check may report anything; those first that have threads, memory of C, and forks.
const WITHOUT_A_BUG: [&str; 7] = [
    "test_threading",
    "test_ctypes",
    "test_json",
    "test_list",
    "test_dict",
    "test_re",
    "test_sqlite3",
];

/// Run CPython's own tests under the preload.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// An interpreter; without any, every one that is installed with the test package.
    #[arg(long, value_name = "PATH")]
    python: Vec<PathBuf>,
    /// A PYTHONMALLOC name; without any, every name that the interpreter takes, or in a full run four of them.
    #[arg(long, value_name = "NAME")]
    row: Vec<String>,
    /// The whole suite, less what needs a network or too much of the machine; first without the library.
    #[arg(long, conflicts_with = "modules")]
    full: bool,
    /// Checks beyond CPython's in the debug rows, as `strict,serial`.
    #[arg(long, value_name = "OPTIONS")]
    debug: Option<String>,
    /// Test modules at once.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Test modules; without any, the list in this program.
    #[arg(value_name = "MODULE")]
    modules: Vec<String>,
}

/// Runs the modules; fails when one passes without the library and fails with it.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    restore_interrupts()?;
    Ok(if broken_modules(&args)? == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs the list of modules on the newest interpreter with a GIL, with CPython's own checks of each block, and some modules on the
/// one before it, in another row, and on the newest under stronger checks and without hooks. Rows differ in their allocators, which tests of their own
/// compare; `regrtest-rows` runs the list in each.
pub(crate) fn short() -> Result<()> {
    let interpreters = newest(2);
    let (Some(newest), Some(oldest)) = (interpreters.first(), interpreters.last()) else {
        println!("skipped: no interpreter with CPython's test package is installed");
        return Ok(());
    };
    restore_interrupts()?;
    let mut broken = run_rows(newest, &["pymalloc_debug"], None, &[])?;
    broken += run_rows(oldest, &["mimalloc_debug"], None, &WITHOUT_A_BUG)?;
    broken += run_rows(newest, &["pymalloc_debug"], Some("strict"), &WITHOUT_A_BUG)?;
    broken += run_rows(newest, &["pymalloc"], Some("guard=1/100"), &WITHOUT_A_BUG[..3])?;
    ensure!(broken == 0, "{broken} modules fail with the library and pass without it");
    Ok(())
}

/// Runs the list of modules on the two newest interpreters with a GIL, in every row of a full run.
pub(crate) fn every_row() -> Result<()> {
    let interpreters = newest(2);
    ensure!(!interpreters.is_empty(), "no interpreter with CPython's tests is installed");
    restore_interrupts()?;
    let mut broken = 0;
    for python in &interpreters {
        broken += run_rows(python, &ROWS_OF_A_FULL_RUN, None, &[])?;
    }
    ensure!(broken == 0, "{broken} modules fail with the library and pass without it");
    Ok(())
}

/// Up to `count` interpreters with a GIL and CPython's tests, the newest first.
fn newest(count: usize) -> Vec<Interpreter> {
    let suits = |python: &Interpreter| python.has_tests && !python.free_threaded;
    Interpreter::installed().into_iter().rev().filter(suits).take(count).collect()
}

fn run_rows(
    python: &Interpreter,
    rows: &[&str],
    debug: Option<&str>,
    modules: &[&str],
) -> Result<usize> {
    let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    broken_modules(&Args {
        python: vec![python.path.clone()],
        row: owned(rows),
        full: false,
        debug: debug.map(str::to_owned),
        jobs: thread::available_parallelism().map_or(2, usize::from),
        modules: owned(modules),
    })
}

/// Lets children start with SIGINT's default action. A shell's background job ignores SIGINT, and CPython's tests of it would fail. A
/// handler of this process does that, as an exec replaces a handler by the default; the handler itself does what the default does.
fn restore_interrupts() -> Result<()> {
    flag::register_conditional_default(SIGINT, Arc::new(AtomicBool::new(true)))?;
    Ok(())
}

/// Runs the modules; returns how many pass without the library and fail with it, summed over rows and interpreters.
fn broken_modules(args: &Args) -> Result<usize> {
    let library = python::library()?;
    let pythons = if args.python.is_empty() {
        Interpreter::installed()
    } else {
        args.python
            .iter()
            .map(|path| Interpreter::probe(path).map_err(anyhow::Error::msg))
            .collect::<Result<_>>()?
    };
    let (with_tests, without): (Vec<_>, Vec<_>) =
        pythons.into_iter().partition(|python| python.has_tests);
    for python in without {
        println!("skipped: {python} has no test package");
    }
    if with_tests.is_empty() {
        bail!("no interpreter with CPython's test package is installed; name one with --python");
    }
    for (test, reason) in EXPECTED_FAILURES {
        println!("expected to fail, and left out: {test} {reason}");
    }
    let mut broken = 0;
    for python in &with_tests {
        let suite =
            Suite { python, library: &library, debug: args.debug.as_deref(), jobs: args.jobs };
        let (modules, plain) = if args.full {
            let modules = all(python)?;
            let plain = suite.run_plain(&modules)?;
            (modules, Some(plain))
        } else {
            (present(python, &args.modules)?, None)
        };
        for row in rows(python, args) {
            broken += suite.run(row, &modules, plain.as_ref())?;
        }
    }
    Ok(broken)
}

/// The rows to run, of those that the interpreter takes.
fn rows<'a>(python: &Interpreter, args: &'a Args) -> Vec<&'a str> {
    if !args.row.is_empty() {
        return args.row.iter().map(String::as_str).collect();
    }
    python.rows().filter(|row| !args.full || ROWS_OF_A_FULL_RUN.contains(row)).collect()
}

/// Every module of the interpreter's suite, less the excluded ones.
fn all(python: &Interpreter) -> Result<Vec<String>> {
    let output = Command::new(&python.path)
        .args(["-m", "test", "--list-tests"])
        .current_dir(std::env::temp_dir())
        .output()
        .context("the test runner")?;
    let text = String::from_utf8(output.stdout).context("names of modules")?;
    let (excluded, modules): (Vec<_>, Vec<_>) =
        text.lines().map(str::to_owned).partition(|module| is_excluded(module));
    ensure!(!modules.is_empty(), "{python} lists no tests");
    println!("{python}: {} modules, {} left out:", modules.len(), excluded.len());
    for (name, reason) in EXCLUDED {
        println!("    {name} {reason}");
    }
    Ok(modules)
}

/// The modules that the interpreter's version has.
fn present(python: &Interpreter, asked: &[String]) -> Result<Vec<String>> {
    let asked: Vec<&str> = if asked.is_empty() {
        MODULES.to_vec()
    } else {
        asked.iter().map(String::as_str).collect()
    };
    let program = "import importlib.util, sys
for name in sys.argv[1:]:
    if importlib.util.find_spec('test.' + name): print(name)";
    let output = Command::new(&python.path)
        .args(["-c", program])
        .args(&asked)
        .output()
        .context("the interpreter")?;
    let text = String::from_utf8(output.stdout).context("names of modules")?;
    let modules: Vec<String> = text.lines().map(str::to_owned).collect();
    let missing: Vec<&str> =
        asked.into_iter().filter(|name| !modules.iter().any(|module| module == name)).collect();
    if !missing.is_empty() {
        println!("{python} has no {}", missing.join(", "));
    }
    Ok(modules)
}

struct Suite<'a> {
    python: &'a Interpreter,
    library: &'a Path,
    debug: Option<&'a str>,
    jobs: usize,
}

/// What became of a module that failed.
enum Verdict {
    /// Passes when it runs alone, with the library.
    Unsteady,
    /// Fails in the same tests without the library.
    FailsAnyway,
    /// Passes without the library, or fails in fewer tests: in these.
    Broken(BTreeSet<String>),
}

impl Suite<'_> {
    /// Runs the modules without the library.
    fn run_plain(&self, modules: &[String]) -> Result<Outcome> {
        let begin = Instant::now();
        let outcome = regrtest(Command::new(&self.python.path), None, self.jobs, modules)?;
        self.print("without the library", &outcome, modules.len(), begin);
        for (module, tests) in &outcome.failed {
            println!("    {module} fails without the library{}", list(tests));
        }
        ensure!(
            outcome.passed || !outcome.failed.is_empty(),
            "the test runner fell over:\n{}",
            outcome.output
        );
        Ok(outcome)
    }

    /// Runs the modules in `row`; returns how many the library breaks. Failures that `plain` has too do not count.
    fn run(&self, row: &str, modules: &[String], plain: Option<&Outcome>) -> Result<usize> {
        let begin = Instant::now();
        let outcome = regrtest(self.preloaded(), Some(row), self.jobs, modules)?;
        self.print(row, &outcome, modules.len(), begin);
        if !outcome.passed && outcome.failed.is_empty() {
            println!("    the test runner fell over\n{}", outcome.output);
            return Ok(1);
        }
        let mut broken = 0;
        for (module, tests) in &outcome.failed {
            let known = plain.and_then(|plain| plain.failed.get(module));
            if known.is_some_and(|known| !tests.is_empty() && tests.is_subset(known)) {
                println!("    {module} fails without the library too{}", list(tests));
                continue;
            }
            let in_row = EXPECTED_IN_ROWS.iter().filter(|(rows, ..)| row.starts_with(rows));
            let in_row = in_row.map(|&(_, test, reason)| (test, reason));
            let with_options = self.debug.map(|_| EXPECTED_WITH_OPTIONS);
            let expected = in_row.chain(with_options).find(|(expected, _)| {
                tests.len() == 1 && tests.iter().all(|test| is_test(test, expected))
            });
            if let Some((test, reason)) = expected {
                println!("    expected to fail: {test} {reason}");
                continue;
            }
            if !outcome.crashed.contains(module) && self.all_fail_anyway(module, tests)? {
                println!("    {module} fails without the library too{}", list(tests));
                continue;
            }
            match self.verdict(row, module)? {
                // A test that misses its time is not ended by a signal.
                Verdict::Unsteady if outcome.crashed.contains(module) => {
                    println!(
                        "    {module} CRASHED WITH THE LIBRARY, and passes when it runs alone"
                    );
                    broken += 1;
                }
                Verdict::Unsteady => {
                    println!("    {module} passes when it runs alone; failed{}", list(tests));
                }
                Verdict::FailsAnyway => {
                    println!("    {module} fails without the library too{}", list(tests));
                }
                Verdict::Broken(tests) => {
                    println!("    {module} FAILS ONLY WITH THE LIBRARY{}", list(&tests));
                    broken += 1;
                }
            }
        }
        if broken > 0 {
            println!("{}", outcome.output);
        }
        println!("{} {row}: {broken} broken", self.python);
        Ok(broken)
    }

    /// Runs the tests of a module that failed, and no others, without the library: do all fail there too?
    fn all_fail_anyway(&self, module: &str, tests: &BTreeSet<String>) -> Result<bool> {
        if tests.is_empty() {
            return Ok(false);
        }
        let functions = tests.iter().filter_map(|test| test.rsplit('.').next());
        let only = functions.flat_map(|name| ["-m", name]).chain([module]);
        let only: Vec<String> = only.map(str::to_owned).collect();
        let without = regrtest(Command::new(&self.python.path), None, self.jobs, &only)?;
        Ok(without.failed.get(module).is_some_and(|known| tests.is_subset(known)))
    }

    /// Runs a module that failed alone, with the library and without it.
    fn verdict(&self, row: &str, module: &str) -> Result<Verdict> {
        let alone = [module.to_owned()];
        let with = regrtest(self.preloaded(), Some(row), self.jobs, &alone)?;
        if with.passed {
            return Ok(Verdict::Unsteady);
        }
        let without = regrtest(Command::new(&self.python.path), None, self.jobs, &alone)?;
        let tests = |outcome: &Outcome| outcome.failed.get(module).cloned().unwrap_or_default();
        let (with, known) = (tests(&with), tests(&without));
        let fewer =
            with.difference(&known).next().is_some() || with.is_empty() && !known.is_empty();
        Ok(if without.passed || fewer {
            Verdict::Broken(with.difference(&known).cloned().collect())
        } else {
            Verdict::FailsAnyway
        })
    }

    fn preloaded(&self) -> Command {
        let mut command = python::preloaded(&self.python.path, self.library);
        if let Some(options) = self.debug {
            command.env("PYMEM_DEBUG", options);
        }
        command
    }

    fn print(&self, row: &str, outcome: &Outcome, modules: usize, begin: Instant) {
        let seconds = begin.elapsed().as_secs();
        let failed = outcome.failed.len();
        let totals = outcome.totals.as_deref().unwrap_or("no count of tests");
        println!(
            "{} {row}: {modules} modules, {failed} failed, {seconds} s; {totals}",
            self.python
        );
    }
}

/// Whether `name`, with a class between module and function or without, is the test `module.function`.
fn is_test(name: &str, test: &str) -> bool {
    name.rsplit_once('.').zip(test.rsplit_once('.')).is_some_and(
        |((place, of), (module, function))| {
            of == function && (place == module || place.starts_with(&format!("{module}.")))
        },
    )
}

/// Tests in brackets, for the end of a line.
fn list(tests: &BTreeSet<String>) -> String {
    if tests.is_empty() {
        return String::new();
    }
    let names: Vec<&str> = tests.iter().map(String::as_str).collect();
    format!(" ({})", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::is_test;

    #[test]
    fn a_test_is_known_with_its_class_and_without() {
        assert!(is_test("test.test_a.test_b", "test.test_a.test_b"));
        assert!(is_test("test.test_a.ATests.test_b", "test.test_a.test_b"));
        assert!(!is_test("test.test_ab.test_b", "test.test_a.test_b"));
        assert!(!is_test("test.test_a.ATests.test_c", "test.test_a.test_b"));
    }
}
