//! Owns `cargo xtask regrtest`: CPython's own test suite under the preload, on every interpreter that has it, in every row.
//!
//! A module that fails under the library is run again without it; only one that passes then counts against us.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::python::{self, Interpreter};

/// Every name of the table.
const ROWS: [&str; 8] = [
    "default",
    "malloc",
    "pymalloc",
    "mimalloc",
    "debug",
    "malloc_debug",
    "pymalloc_debug",
    "mimalloc_debug",
];

/// Modules chosen for what they allocate: each object type, containers, strings of every width, buffers, threads, forks,
/// subprocesses, cyclic garbage, interpreters, C extensions, and the allocator's own tests. A version that lacks one of
/// them leaves it out.
const MODULES: [&str; 60] = [
    "test_array",
    "test_ast",
    "test_asyncgen",
    "test_bisect",
    "test_buffer",
    "test_bytes",
    "test_capi",
    "test_class",
    "test_collections",
    "test_compile",
    "test_contextlib",
    "test_copy",
    "test_coroutines",
    "test_csv",
    "test_ctypes",
    "test_dataclasses",
    "test_defaultdict",
    "test_deque",
    "test_descr",
    "test_dict",
    "test_enumerate",
    "test_exceptions",
    "test_float",
    "test_fork1",
    "test_format",
    "test_functools",
    "test_gc",
    "test_generators",
    "test_heapq",
    "test_int",
    "test_io",
    "test_iter",
    "test_itertools",
    "test_json",
    "test_list",
    "test_long",
    "test_marshal",
    "test_memoryview",
    "test_mmap",
    "test_ordered_dict",
    "test_pickle",
    "test_pyexpat",
    "test_queue",
    "test_re",
    "test_set",
    "test_sort",
    "test_sqlite3",
    "test_str",
    "test_struct",
    "test_subprocess",
    "test_sys",
    "test_thread",
    "test_threading",
    "test_tracemalloc",
    "test_tuple",
    "test_unicode",
    "test_weakref",
    "test_weakset",
    "test_xml_etree",
    "test_zlib",
];

/// Tests that fail under any preloaded allocator, since they look for the interpreter's own: its name, its block count,
/// its statistics.
const EXPECTED_FAILURES: [&str; 3] =
    ["test_pythonmalloc", "test_getallocatedblocks", "test_debugmallocstats"];

/// The status of a run in which every module passed or was skipped, and of one without a test to run.
const PASSED: [i32; 2] = [0, 4];

/// Run CPython's own tests under the preload.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// An interpreter; without any, every one that is installed with the test package.
    #[arg(long, value_name = "PATH")]
    python: Vec<PathBuf>,
    /// A PYTHONMALLOC name; without any, every one that the interpreter takes.
    #[arg(long, value_name = "NAME")]
    row: Vec<String>,
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
    let mut broken = 0;
    for python in &with_tests {
        let modules = present(python, &args.modules)?;
        for row in rows(python, &args.row) {
            let suite = Suite {
                python,
                row,
                library: &library,
                debug: args.debug.as_deref(),
                jobs: args.jobs,
            };
            broken += suite.run(&modules)?;
        }
    }
    Ok(if broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The rows to run; a host without the GIL takes four names of the eight.
fn rows<'a>(python: &Interpreter, asked: &'a [String]) -> Vec<&'a str> {
    if !asked.is_empty() {
        return asked.iter().map(String::as_str).collect();
    }
    let takes = |row: &&str| {
        !python.free_threaded || !["malloc", "pymalloc"].iter().any(|name| row.starts_with(name))
    };
    ROWS.into_iter().filter(takes).collect()
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
    row: &'a str,
    library: &'a Path,
    debug: Option<&'a str>,
    jobs: usize,
}

impl Suite<'_> {
    /// Runs the modules; returns how many the library breaks.
    fn run(&self, modules: &[String]) -> Result<usize> {
        let begin = Instant::now();
        let mut command = python::preloaded(&self.python.path, self.library);
        command.env("PYTHONMALLOC", self.row);
        if let Some(options) = self.debug {
            command.env("PYMEM_DEBUG", options);
        }
        let outcome = self.regrtest(command, modules)?;
        let failed = self.without_the_library(&outcome)?;
        let seconds = begin.elapsed().as_secs();
        println!(
            "{} {}: {} modules, {} broken, {seconds} s",
            self.python,
            self.row,
            modules.len(),
            failed.len()
        );
        for module in &failed {
            println!("    {module} fails only with the library");
        }
        if !failed.is_empty() {
            println!("{}", outcome.output);
        }
        Ok(failed.len())
    }

    /// Of the modules that failed, those that pass without the library; all of them when the run itself fell over.
    fn without_the_library(&self, outcome: &Outcome) -> Result<BTreeSet<String>> {
        let mut broken = BTreeSet::new();
        if !outcome.passed && outcome.failed.is_empty() {
            broken.insert(String::from("the test runner"));
        }
        for module in &outcome.failed {
            let command = Command::new(&self.python.path);
            if self.regrtest(command, std::slice::from_ref(module))?.passed {
                broken.insert(module.clone());
            } else {
                println!("    {module} fails without the library too");
            }
        }
        Ok(broken)
    }

    fn regrtest(&self, mut command: Command, modules: &[String]) -> Result<Outcome> {
        let folder = std::env::temp_dir();
        command.args(["-m", "test", "--timeout", "900", "-j"]).arg(self.jobs.to_string());
        for pattern in EXPECTED_FAILURES {
            command.args(["-i", pattern]);
        }
        command.args(modules).current_dir(folder).stdin(Stdio::null());
        let output = command.output().context("the test runner")?;
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        let passed = output.status.code().is_some_and(|code| PASSED.contains(&code));
        let failed = if passed { BTreeSet::new() } else { failed_modules(&text) };
        Ok(Outcome { passed, failed, output: text })
    }
}

struct Outcome {
    passed: bool,
    failed: BTreeSet<String>,
    output: String,
}

/// The modules under the last heading `N tests failed:` of the runner's report.
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

#[cfg(test)]
mod tests {
    use super::{MODULES, failed_modules};

    #[test]
    fn the_report_is_read() {
        let report =
            "== Tests result: FAILURE ==\n\n2 tests failed:\n    test_gc test_sys\n\n3 tests OK.\n";
        assert_eq!(failed_modules(report).into_iter().collect::<Vec<_>>(), ["test_gc", "test_sys"]);
        assert!(failed_modules("All 3 tests OK.\n").is_empty());
    }

    #[test]
    fn the_list_is_sorted_and_long_enough() {
        assert!(MODULES.is_sorted());
        assert!(MODULES.len() >= 40);
    }
}
