//! Owns the check of the crates on another machine: built for aarch64 Linux and run by an emulator. `.ci/aarch64` fetches what that
//! takes. An emulator does not show weak memory orderings, which are loom's.

mod left_out;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xshell::{Shell, cmd};

use crate::hosts::{self, Host};
use crate::python::Interpreter;
use crate::{docs, workspace};

const TARGET: &str = "aarch64-unknown-linux-gnu";

/// The crates whose tests run.
const TESTED: [&str; 8] = [
    "malloc-api",
    "pymem-sync",
    "pymalloc-core",
    "memdebug",
    "mimalloc-heaps",
    "pymem-domains",
    "malloc-trace",
    "heap-report",
];

/// The tests of these crates that a runner of tests can start one by one.
const PROGRAMS: [&str; 7] = ["--lib", "--test", "it", "--test", "account", "--test", "system"];

/// Sizes of pages that kernels for aarch64 are built with; the emulator stands for each of them.
const PAGES: [usize; 3] = [4096, 16384, 65536];

/// The C compiler, which also links, and what runs programs.
const C_COMPILER: &str = "aarch64-linux-gnu-gcc";
const EMULATOR: &str = "qemu-aarch64";

/// Builds every crate for aarch64, runs their tests, and an interpreter in every row.
///
/// # Errors
///
/// What does not build, or behaves otherwise than here.
pub(crate) fn run(shell: &Shell) -> Result<()> {
    let tools = workspace::target().join("aarch64-tools");
    let script = workspace::root().join(".ci/aarch64");
    let fetch = cmd!(shell, "{script} {tools}").quiet().ignore_status().output()?;
    if !fetch.status.success() {
        print!("skipped: {}", String::from_utf8_lossy(&fetch.stdout));
        return Ok(());
    }
    let has_runner = cmd!(shell, "cargo nextest --version").quiet().ignore_stdout().ignore_stderr();
    if has_runner.run().is_err() {
        println!("skipped: it needs cargo-nextest; cargo install --locked cargo-nextest");
        return Ok(());
    }
    let here = tests(shell, &[])?;
    let (rust, python) = (tools.join("rust/usr"), tools.join("python"));
    let target = workspace::target().join("aarch64");
    let folders = [rust.join("lib"), rust.join("lib/x86_64-linux-gnu")];
    let _compiler = shell.push_env("RUSTC", rust.join("bin/rustc"));
    let _libraries = shell.push_env("LD_LIBRARY_PATH", std::env::join_paths(folders)?);
    let _linker = shell.push_env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", C_COMPILER);
    let _c_compiler = shell.push_env("CC", C_COMPILER);
    let _runner = shell.push_env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", EMULATOR);
    let _runner_of_children = shell.push_env("MALLOC_API_TEST_RUNNER", EMULATOR);
    let _root = shell.push_env("QEMU_LD_PREFIX", &python);
    // An emulated program without optimization takes minutes.
    let _level = shell.push_env("CARGO_PROFILE_DEV_OPT_LEVEL", "1");
    let _lines = shell.push_env("CARGO_PROFILE_DEV_DEBUG", "line-tables-only");
    // With pages larger than this machine's the emulator's loads of vectors of any length refuse memory that there is.
    let _processor = shell.push_env("QEMU_CPU", "max,sve=off");
    let build = ["--target", TARGET, "--target-dir", &target.to_string_lossy()];
    cmd!(shell, "cargo build --quiet {build...} -p pymem-preload").run()?;
    run_tests(shell, &build, &here)?;
    let library = target.join(TARGET).join("debug/libpymem_preload.so");
    let program = python.join("usr/bin/python3.11");
    // What `cargo xtask hosts` asks of interpreters of this machine, of which bugs with their frames are most.
    let starter = target.join("python3.11");
    fs::write(
        &starter,
        format!(
            "#!/bin/sh\nexec {EMULATOR} -L {} {} \"$@\"\n",
            python.display(),
            program.display()
        ),
    )?;
    fs::set_permissions(&starter, fs::Permissions::from_mode(0o755))?;
    let mut python = Interpreter::probe(&starter).map_err(anyhow::Error::msg)?;
    python.path = starter;
    let preload = format!("LD_PRELOAD={}", library.display());
    let host = Host { python, preload: ("QEMU_SET_ENV", preload.into()) };
    let rows = hosts::check(&[host], left_out::is_checked, 5);
    print!("{}", docs::markdown(&["CPython 3.11", "aarch64"], &rows.rows));
    rows.ensure_green()
}

/// The number of tests that each crate has, in the order of the crates.
fn tests(shell: &Shell, build: &[&str]) -> Result<Vec<u64>> {
    let packages = TESTED.iter().flat_map(|name| ["--package", name]);
    let list = cmd!(
        shell,
        "cargo nextest list --message-format json {build...} {packages...} {PROGRAMS...}"
    );
    let list: Value = serde_json::from_str(&list.quiet().read()?)?;
    let suites = list["rust-suites"].as_object().context("the runner of tests lists none")?;
    let count = |name| {
        let of_crate = suites.values().filter(|suite| suite["package-name"] == name);
        of_crate
            .filter_map(|suite| suite["testcases"].as_object())
            .map(|tests| tests.len() as u64)
            .sum()
    };
    Ok(TESTED.map(count).to_vec())
}

/// Runs the tests with every size of pages, and prints what became of them beside how many there are on this machine.
fn run_tests(shell: &Shell, build: &[&str], here: &[u64]) -> Result<()> {
    let there = tests(shell, build)?;
    let mut rows: Vec<Vec<String>> = (0..TESTED.len())
        .map(|at| vec![format!("`{}`", TESTED[at]), here[at].to_string(), there[at].to_string()])
        .collect();
    let mut failed = 0;
    let report = workspace::root().join("target/nextest/aarch64/junit.xml");
    let filter = &left_out::filter();
    for page in PAGES {
        let packages = TESTED.iter().flat_map(|name| ["--package", name]);
        let _page = shell.push_env("QEMU_PAGESIZE", page.to_string());
        cmd!(
            shell,
            "cargo nextest run --profile aarch64 --status-level fail --final-status-level fail -E {filter} {build...} {packages...} {PROGRAMS...}"
        )
        .ignore_status()
        .run()?;
        let report = fs::read_to_string(&report).context("the runner of tests left no report")?;
        for (at, row) in rows.iter_mut().enumerate() {
            let (run, red) = outcome(&report, TESTED[at]);
            failed += red;
            row.push(format!("{}, {red} red, {} left out", run - red, there[at] - run));
        }
    }
    let header = ["crate", "tests on x86-64", "on aarch64", "4 KiB", "16 KiB", "64 KiB"];
    print!("{}", docs::markdown(&header, &rows));
    ensure!(failed == 0, "{failed} tests are red on aarch64");
    Ok(())
}

/// How many tests of a crate ran, and how many were red, by a report in JUnit's form.
fn outcome(report: &str, name: &str) -> (u64, u64) {
    let attribute = |suite: &str, attribute: &str| {
        let (_, value) = suite.split_once(&format!(" {attribute}=\"")).unwrap_or_default();
        value.split('"').next().unwrap_or_default().to_owned()
    };
    let number =
        |suite: &str, name: &str| attribute(suite, name).parse::<u64>().unwrap_or_default();
    let suites = report.split("<testsuite ").skip(1).map(|suite| format!(" {suite}"));
    let of_crate = suites.filter(|suite| attribute(suite, "name").split("::").next() == Some(name));
    of_crate.fold((0, 0), |(run, red), suite| {
        (run + number(&suite, "tests"), red + number(&suite, "failures") + number(&suite, "errors"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crates_programs_add_up() {
        let report = r#"<testsuites name="nextest-run" tests="33" failures="3" errors="1">
    <testsuite name="memdebug" tests="6" skipped="0" errors="0" failures="1">
    <testsuite name="memdebug::it" tests="11" skipped="0" errors="1" failures="2">
    <testsuite name="malloc-api::it" tests="16" skipped="0" errors="0" failures="0">"#;
        assert_eq!(outcome(report, "memdebug"), (17, 4));
        assert_eq!(outcome(report, "malloc-api"), (16, 0));
        assert_eq!(outcome(report, "malloc"), (0, 0));
    }
}
