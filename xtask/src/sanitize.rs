//! Owns the runs of the tests under AddressSanitizer and under Valgrind's memcheck.
//!
//! Both builds tell mimalloc to report its blocks to the tool (`MI_TRACK_ASAN`, `MI_TRACK_VALGRIND`), or the tool would take
//! every block of a page for one piece of memory. Each build has a target folder of its own, as the C flags differ.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use xshell::{Shell, cmd};

/// The crates whose tests run under both tools, and the tests of each that do not, with the reason.
///
/// - `fork::`: thousands of processes, each a copy of the tool's own state, within a time limit for hangs.
/// - `memory::`: compares the process's resident memory with limits, and the tools keep shadow memory and freed blocks.
/// - `retired_list_buffers`: the same.
const CRATES: &[(&str, &[&str])] = &[
    ("malloc-api", &[]),
    ("pymem-sync", &[]),
    ("mimalloc-heaps", &["fork::", "memory::", "retired_list_buffers", "outside_the_arenas"]),
];

/// The target that instrumented builds name, so that build scripts stay uninstrumented.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Known findings in code that is not ours, each argued in the file.
const SUPPRESSIONS: &str = "crates/mimalloc-heaps/tests/valgrind.supp";

/// `cargo xtask asan`: needs a nightly toolchain.
pub(crate) fn asan() -> Result<()> {
    let shell = Shell::new()?;
    shell.change_dir(crate::root());
    let _flags = shell.push_env("RUSTFLAGS", "-Zsanitizer=address");
    let _cflags = shell.push_env("CFLAGS", "-fsanitize=address -DMI_TRACK_ASAN=1");
    let _folder = shell.push_env("CARGO_TARGET_DIR", folder("asan"));
    // Heaps are pooled and never deleted, so what they keep is reachable from statics only through mimalloc's tagged words.
    // The tests ask the C library for more than there can be and expect null, as C says; the tool would end the process.
    let options = "detect_leaks=0:abort_on_error=0:exitcode=99:allocator_may_return_null=1";
    let _options = shell.push_env("ASAN_OPTIONS", options);
    for (name, skipped) in CRATES {
        let skips = skips(skipped);
        cmd!(
            shell,
            "cargo +nightly test -q -p {name} --lib --tests --target {TARGET} -- {skips...}"
        )
        .run()
        .with_context(|| format!("AddressSanitizer found something in {name}"))?;
    }
    Ok(())
}

/// `cargo xtask valgrind`: needs Valgrind 3.19 or later.
pub(crate) fn valgrind() -> Result<()> {
    let shell = Shell::new()?;
    shell.change_dir(crate::root());
    cmd!(shell, "valgrind --version").quiet().ignore_stdout().run().context("no valgrind here")?;
    let _cflags = shell.push_env("CFLAGS", "-DMI_TRACK_VALGRIND=1");
    let _folder = shell.push_env("CARGO_TARGET_DIR", folder("valgrind"));
    let suppressions = crate::root().join(SUPPRESSIONS);
    ensure!(suppressions.is_file(), "no suppressions at {}", suppressions.display());
    for (name, skipped) in CRATES {
        let skips = &skips(skipped);
        for program in test_programs(&shell, name)? {
            println!("memcheck: {name}: {}", program.display());
            cmd!(
                shell,
                "valgrind -q --error-exitcode=99 --suppressions={suppressions} {program} --test-threads=1 {skips...}"
            )
            .run()
            .with_context(|| format!("memcheck found something in {name}"))?;
        }
    }
    Ok(())
}

/// A target folder beside the usual one.
fn folder(tool: &str) -> PathBuf {
    let usual = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    usual.unwrap_or_else(|| crate::root().join("target")).join(tool)
}

fn skips(names: &[&str]) -> Vec<String> {
    names.iter().flat_map(|name| ["--skip".to_owned(), (*name).to_owned()]).collect()
}

/// Builds the tests of a crate and returns the programs.
fn test_programs(shell: &Shell, name: &str) -> Result<Vec<PathBuf>> {
    let messages =
        cmd!(shell, "cargo test -q -p {name} --lib --tests --no-run --message-format=json")
            .read()?;
    let programs: Vec<PathBuf> = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .collect();
    if programs.is_empty() {
        bail!("{name} has no tests to run");
    }
    Ok(programs)
}
