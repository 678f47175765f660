//! Owns the runs of the tests under AddressSanitizer, LeakSanitizer and Valgrind's memcheck. Each run begins with planted bugs,
//! which the tool must report.
//!
//! mimalloc is built to tell the tool about its blocks (`MI_TRACK_ASAN`, `MI_TRACK_VALGRIND`); otherwise a whole page would be one
//! block to the tool. The C flags differ, so that each tool has a target folder of its own.

mod interpreter;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use xshell::{Shell, cmd};

use crate::workspace;

/// The tests of one crate under one tool.
struct Tests {
    name: &'static str,
    /// Features beyond the default ones.
    features: &'static str,
    /// Tests whose names contain one of these do not run.
    skipped: &'static [&'static str],
    /// If there is one, only tests whose names contain one of these run.
    only: &'static [&'static str],
}

const fn all(name: &'static str, skipped: &'static [&'static str]) -> Tests {
    Tests { name, features: "", skipped, only: &[] }
}

/// - `fork::`: thousands of processes, each a copy of the tool's own state, within a time limit for hangs.
/// - `memory::`: compares the process's resident memory with limits, and the tools keep shadow memory and freed blocks.
/// - `retired_list_buffers`, `outside_the_arenas`: the same.
const MIMALLOC_SKIPPED: &[&str] =
    &["fork::", "memory::", "retired_list_buffers", "outside_the_arenas"];

/// Left out of `pymem-domains`: a test of what the C library gives back, whose freed blocks the tool keeps.
const ASAN: &[Tests] = &[
    Tests { name: "malloc-api", features: "nightly", skipped: &[], only: &[] },
    all("pymem-sync", &[]),
    all("mimalloc-heaps", MIMALLOC_SKIPPED),
    all("malloc-trace", &[]),
    all("pymalloc-core", &[]),
    all("memdebug", &[]),
    all("pymem-domains", &["the_c_librarys_release_says"]),
    Tests { name: "pymalloc-core", features: "asan", skipped: &[], only: &["checkers::"] },
    Tests { name: "memdebug", features: "asan", skipped: &[], only: &["checkers::"] },
];

/// Left out: tests whose threads leak what they share, and crates whose records live for ever.
const LSAN: &[Tests] = &[
    all("malloc-api", &[]),
    all("pymem-sync", &["stress::", "reclaim_may_retire_into_its_own_queue"]),
    all("malloc-trace", &["the_sink_may_allocate_from_the_recorded_allocator"]),
    all("pymalloc-core", &[]),
];

/// The tests that memcheck runs in seconds. [`ANNOTATED`] crates and the preload have runs of their own. `malloc-trace` is left out:
/// its tests replay hundreds of thousands of calls.
const MEMCHECK: &[Tests] = &[
    all("malloc-api", &[]),
    all("pymem-sync", &[]),
    all("mimalloc-heaps", MIMALLOC_SKIPPED),
    Tests {
        name: "pymalloc-core",
        features: "",
        skipped: &[],
        only: &["pools::", "huge_pages::", "release::", "text::"],
    },
    Tests { name: "pymem-domains", features: "", skipped: &[], only: &["custom::", "typed::"] },
];

/// The crates that tell memcheck about their blocks.
const ANNOTATED: &[&str] = &["pymalloc-core", "memdebug"];

/// The target of instrumented builds. Cargo does not instrument build scripts when a target is named.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The exit status of a run in which the tool reported something.
const REPORTED: i32 = 99;

/// Known reports about code that is not ours. The file gives the reason for each.
const SUPPRESSIONS: &str = "crates/mimalloc-heaps/tests/valgrind.supp";

/// `cargo xtask asan`: needs a nightly toolchain.
pub(crate) fn asan() -> Result<()> {
    let shell = shell("asan")?;
    let _flags = shell.push_env("RUSTFLAGS", "-Zsanitizer=address --cfg pymem_asan");
    let _cflags = shell.push_env("CFLAGS", "-fsanitize=address -DMI_TRACK_ASAN=1");
    // No leak check: heaps are pooled and never deleted, and only mimalloc's tagged words lead to what they keep.
    // Some tests ask for more memory than there can be and expect null. By default the tool would end the process.
    let options =
        format!("detect_leaks=0:abort_on_error=0:exitcode={REPORTED}:allocator_may_return_null=1");
    let _options = shell.push_env("ASAN_OPTIONS", options);
    let plant = plant(&shell, Some("address"))?;
    must_report(&shell, &plant, "overflow", "heap-buffer-overflow")?;
    must_report(&shell, &plant, "use after free", "heap-use-after-free")?;
    nightly_tests(&shell, ASAN, "AddressSanitizer", &["--lib", "--tests"])
}

/// `cargo xtask lsan`: needs a nightly toolchain.
pub(crate) fn lsan() -> Result<()> {
    let shell = shell("lsan")?;
    let _flags = shell.push_env("RUSTFLAGS", "-Zsanitizer=leak");
    let options = format!("exitcode={REPORTED}:allocator_may_return_null=1");
    let _options = shell.push_env("LSAN_OPTIONS", options);
    let plant = plant(&shell, Some("leak"))?;
    must_report(&shell, &plant, "leak", "LeakSanitizer: detected memory leaks")?;
    // Without the programs that have no test harness: their threads leak what they share.
    nightly_tests(&shell, LSAN, "LeakSanitizer", &["--lib", "--test=it"])
}

/// `cargo xtask valgrind`: needs Valgrind 3.19 or later.
pub(crate) fn valgrind() -> Result<()> {
    let shell = shell("valgrind")?;
    cmd!(shell, "valgrind --version").quiet().ignore_stdout().run().context("no valgrind here")?;
    let _cflags = shell.push_env("CFLAGS", "-DMI_TRACK_VALGRIND=1");
    let suppressions = workspace::root().join(SUPPRESSIONS);
    ensure!(suppressions.is_file(), "no suppressions at {}", suppressions.display());
    let plant = plant(&shell, None)?;
    must_report(&shell, &plant, "overflow", "Invalid write of size 1")?;
    must_report(&shell, &plant, "use after free", "inside a block of size 24 free'd")?;
    must_report(&shell, &plant, "uninitialised read", "depends on uninitialised value")?;
    for tests in MEMCHECK {
        let (only, skips) = (tests.only, &skips(tests));
        let targets: &[&str] = if only.is_empty() { &["--lib", "--tests"] } else { &["--test=it"] };
        for program in test_programs(&shell, tests.name, targets)? {
            println!("memcheck: {}: {}", tests.name, program.display());
            cmd!(
                shell,
                "valgrind -q --error-exitcode=99 --suppressions={suppressions} {program} --test-threads=1 {only...} {skips...}"
            )
            .run()
            .with_context(|| format!("memcheck found something in {}", tests.name))?;
        }
    }
    // These start memcheck themselves, once for each bug.
    for name in ANNOTATED {
        cmd!(shell, "cargo test -q -p {name} --features=valgrind --test it -- checkers::").run()?;
    }
    interpreter::run(&shell, REPORTED)
}

/// A shell in the workspace whose builds go to a target folder of the tool's own, beside the usual one.
fn shell(tool: &str) -> Result<Shell> {
    let shell = workspace::shell()?;
    let folder = workspace::target().join(tool);
    shell.create_dir(&folder)?;
    shell.set_var("CARGO_TARGET_DIR", folder);
    Ok(shell)
}

/// Builds the program of planted bugs. A sanitizer needs nightly.
fn plant(shell: &Shell, sanitizer: Option<&str>) -> Result<PathBuf> {
    let program = PathBuf::from(shell.var_os("CARGO_TARGET_DIR").unwrap_or_default()).join("bugs");
    let source = "xtask/plants/bugs.rs";
    match sanitizer {
        Some(sanitizer) => {
            cmd!(
                shell,
                "rustc +nightly -Zsanitizer={sanitizer} --edition 2024 -g {source} -o {program}"
            )
            .run()
            .context("this needs a nightly toolchain: `rustup toolchain install nightly`")?;
        }
        None => cmd!(shell, "rustc --edition 2024 -g {source} -o {program}").run()?,
    }
    Ok(program)
}

/// Runs one planted bug, which the tool must report in these words.
fn must_report(shell: &Shell, program: &Path, bug: &str, words: &str) -> Result<()> {
    let under_valgrind = ["-q".into(), format!("--error-exitcode={REPORTED}")];
    let is_sanitized = shell.var_os("RUSTFLAGS").is_some();
    let run = match is_sanitized {
        true => cmd!(shell, "{program} {bug}"),
        false => cmd!(shell, "valgrind {under_valgrind...} {program} {bug}"),
    };
    let output = run.quiet().ignore_status().output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(REPORTED) && text.contains(words),
        "the {bug} on purpose was not reported as `{words}`, so a silent run says nothing: {}\n{text}",
        output.status
    );
    println!("the {bug} on purpose was reported");
    Ok(())
}

fn nightly_tests(shell: &Shell, list: &[Tests], tool: &str, targets: &[&str]) -> Result<()> {
    for tests in list {
        let skips = skips(tests);
        let &Tests { name, features, only, .. } = tests;
        println!("{tool}: {name} {features}");
        cmd!(
            shell,
            "cargo +nightly test -q -p {name} --features={features} {targets...} --target {TARGET} -- {only...} {skips...}"
        )
        .run()
        .with_context(|| format!("{tool} found something in {name}"))?;
    }
    Ok(())
}

fn skips(tests: &Tests) -> Vec<String> {
    tests.skipped.iter().flat_map(|name| ["--skip".to_owned(), (*name).to_owned()]).collect()
}

/// Builds the tests of a crate and returns the programs.
fn test_programs(shell: &Shell, name: &str, targets: &[&str]) -> Result<Vec<PathBuf>> {
    let build = cmd!(shell, "cargo test -q -p {name} {targets...} --no-run");
    let programs = workspace::programs(build)?;
    ensure!(!programs.is_empty(), "{name} has no tests to run");
    Ok(programs.into_iter().map(|(_, path)| path).collect())
}
