//! Owns `cargo xtask rustpython`: RustPython as published, with the obj domain as its global allocator, against its own allocator
//! and mimalloc.
//!
//! CPython's tests must have the same outcome under every name of the table as under RustPython's own allocator, those that it fails
//! included. Of modules it has what it passes without us: its `gc` is a stub, so `test_gc` is none of them. The programs run in turn, so
//! that a machine that slows down slows all of them, and a ratio is of two runs of the same round.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use pymem_domains::AllocatorName;
use xshell::{Shell, cmd};

use crate::python::Interpreter;
use crate::workspace;

/// The interpreter, and with it the version of the library whose folder it is built with.
const VERSION: &str = "0.4.0";

const MODULES: &[&str] = &["test.test_json", "test.test_list", "test.test_dict"];

const SUITES: &str = include_str!("suites.py");

/// What stands before `main` in each program, by name: the default allocator, mimalloc and the obj domain.
const PROGRAMS: [(&str, &str); 3] = [
    ("default", ""),
    ("mimalloc", "#[global_allocator]\nstatic GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;\n"),
    (
        "domains",
        "#[global_allocator]\nstatic GLOBAL: malloc_api::GlobalAdapter<pymem_domains::global::Obj> =\n    malloc_api::GlobalAdapter::new(pymem_domains::global::Obj);\n",
    ),
];

const MAIN: &str = "fn main() -> std::process::ExitCode {\n    rustpython::run(|_| {})\n}\n";

/// Runs every row `rounds` times, at least once.
///
/// # Errors
///
/// What does not build, does not run, or has an outcome that RustPython with its own allocator has not.
pub(crate) fn run(rounds: usize) -> Result<()> {
    let installed = Interpreter::installed();
    let tests = installed.iter().find_map(|interpreter| library(&interpreter.path));
    let Some(library) = tests else {
        println!("skipped: no installed CPython has the package `test`");
        return Ok(());
    };
    let shell = workspace::shell()?;
    let folder = workspace::target().join("third-party/rustpython");
    build(&shell, &folder)?;
    let suites = folder.join("suites.py");
    shell.write_file(&suites, SUITES)?;
    let tests = folder.join("tests");
    shell.remove_path(&tests)?;
    shell.create_dir(&tests)?;
    std::os::unix::fs::symlink(library.join("test"), tests.join("test"))?;
    let others = [("own", "default", None), ("crate mimalloc", "mimalloc", None)];
    let ours = AllocatorName::ALL.map(|row| (row.as_str(), "domains", Some(row)));
    let rows: Vec<_> = others.into_iter().chain(ours).collect();
    let mut runs: Vec<Vec<Run>> = rows.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds.max(1) {
        for (&(name, program, row), to) in rows.iter().zip(0..) {
            let program = folder.join("target/release").join(program);
            let run = Run::of(&program, &suites, &tests, row)?;
            run.must_be(runs[0].first().unwrap_or(&run), name)?;
            runs[to].push(run);
        }
    }
    let passed = runs[0][0].passed();
    ensure!(passed > 100, "RustPython passes {passed} tests alone");
    println!("{passed} tests pass in each row; medians of {} runs in turn", runs[0].len());
    println!(
        "{:<16}{:>10}{:>18}{:>8}{:>12}",
        "allocator", "CPU s", "quartiles", "ratio", "peak KiB"
    );
    for (&(name, ..), of_row) in rows.iter().zip(&runs) {
        let seconds = quartiles(of_row.iter().map(|run| run.seconds));
        let pairs = of_row.iter().zip(&runs[0]);
        let [_, ratio, _] = quartiles(pairs.map(|(ours, own)| ours.seconds / own.seconds));
        let [_, peak, _] = quartiles(of_row.iter().map(|run| run.peak_kib));
        let [low, middle, high] = seconds;
        println!("{name:<16}{middle:>10.2}{low:>11.2} to {high:.2}{ratio:>8.3}{peak:>12.0}");
    }
    Ok(())
}

/// The lower quartile, the median and the upper quartile of numbers, of which there is one at least.
fn quartiles(numbers: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut sorted: Vec<f64> = numbers.collect();
    sorted.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| sorted[(sorted.len() - 1) * quarter / 4])
}

/// The library of the interpreter at `path`, if the package `test` is in it.
fn library(path: &Path) -> Option<PathBuf> {
    let code = "import os, test.test_json as t; print(os.path.dirname(os.path.dirname(os.path.dirname(t.__file__))))";
    let output = Command::new(path).args(["-c", code]).output().ok()?;
    let library = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    library.join("test/test_json").is_dir().then_some(library)
}

/// Builds a program for each allocator. They share all crates but their own few lines.
fn build(shell: &Shell, folder: &Path) -> Result<()> {
    let crates = workspace::root().join("crates");
    let crates = crates.display();
    let manifest = format!(
        r#"[package]
name = "rustpython-client"
version = "0.0.0"
edition = "2024"

[dependencies]
rustpython = {{ version = "={VERSION}", default-features = false, features = ["threading", "stdlib", "importlib"] }}
malloc-api = {{ path = "{crates}/malloc-api" }}
pymem-domains = {{ path = "{crates}/pymem-domains" }}
mimalloc = {{ version = "=0.1.52", default-features = false }}

[workspace]
"#
    );
    let path = folder.join("Cargo.toml");
    shell.write_file(&path, manifest)?;
    for (name, allocator) in PROGRAMS {
        let file = folder.join(format!("src/bin/{name}.rs"));
        shell.write_file(file, format!("{allocator}\n{MAIN}"))?;
    }
    let target = folder.join("target");
    Ok(cmd!(shell, "cargo build -q --release --manifest-path {path} --target-dir {target}")
        .run()?)
}

/// What a run of the suites printed.
struct Run {
    /// A line for each test.
    outcomes: Vec<String>,
    seconds: f64,
    peak_kib: f64,
}

impl Run {
    fn of(program: &Path, suites: &Path, tests: &Path, row: Option<AllocatorName>) -> Result<Self> {
        let mut command = Command::new(program);
        command.arg(suites).args(MODULES).env("RUSTPYTHONPATH", tests);
        command.env("PYTHONMALLOC", row.map_or("", AllocatorName::as_str));
        let output = command.output().with_context(|| format!("{}", program.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{row:?}: {}\n{error}", output.status);
        let number = |word| text.lines().find_map(|line| line.strip_prefix(word));
        Ok(Self {
            outcomes: text
                .lines()
                .filter(|l| l.starts_with("outcome "))
                .map(str::to_owned)
                .collect(),
            seconds: number("seconds ").context("no seconds")?.parse()?,
            peak_kib: number("peak ").context("no peak")?.parse()?,
        })
    }

    fn passed(&self) -> usize {
        self.outcomes.iter().filter(|line| line.ends_with(" ok")).count()
    }

    fn must_be(&self, own: &Self, name: &str) -> Result<()> {
        let differing = self.outcomes.iter().zip(&own.outcomes).find(|(ours, own)| ours != own);
        ensure!(differing.is_none(), "{name} and its own allocator: {differing:?}");
        let (ours, own) = (self.outcomes.len(), own.outcomes.len());
        ensure!(ours == own, "{name} ran {ours} tests, its own allocator {own}");
        Ok(())
    }
}
