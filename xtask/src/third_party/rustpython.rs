//! Owns `cargo xtask rustpython`: RustPython as published, with the obj domain as its global allocator, against its own allocator
//! and mimalloc.
//!
//! CPython's tests must have the same outcome under every name of the table as under RustPython's own allocator, those that it fails
//! included. Of modules it has what it passes without us: its `gc` is a stub, so `test_gc` is none of them.

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

pub(crate) fn run() -> Result<()> {
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
    let run = |name: &str, row: Option<AllocatorName>| {
        Run::of(&folder.join("target/release").join(name), &suites, &tests, row)
    };
    let own = run("default", None)?;
    ensure!(own.passed() > 100, "RustPython passes {} tests alone", own.passed());
    println!("{:<18}{:>8}{:>10}{:>12}", "allocator", "passed", "seconds", "peak KiB");
    own.print("own");
    let mimalloc = run("mimalloc", None)?;
    mimalloc.print("mimalloc");
    mimalloc.must_be(&own, "mimalloc")?;
    for row in AllocatorName::ALL {
        let ours = run("domains", Some(row))?;
        ours.print(row.as_str());
        ours.must_be(&own, row.as_str())?;
    }
    Ok(())
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
    peak_kib: u64,
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

    fn print(&self, name: &str) {
        println!("{name:<18}{:>8}{:>10.2}{:>12}", self.passed(), self.seconds, self.peak_kib);
    }

    fn must_be(&self, own: &Self, name: &str) -> Result<()> {
        let differing = self.outcomes.iter().zip(&own.outcomes).find(|(ours, own)| ours != own);
        ensure!(differing.is_none(), "{name} and its own allocator: {differing:?}");
        let (ours, own) = (self.outcomes.len(), own.outcomes.len());
        ensure!(ours == own, "{name} ran {ours} tests, its own allocator {own}");
        Ok(())
    }
}
