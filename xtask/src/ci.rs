//! Owns the list of checks that must be green before a change lands, and runs them in order of cost.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use xshell::{Shell, cmd};

use crate::workspace::CRATES;
use crate::{
    bench, docs, fuzz, header, install, layers, loom, msrv, regrtest, snippets, third_party,
    workspace,
};

/// A named check; the name is what `cargo xtask ci NAME` takes.
type Step = (&'static str, fn(&Shell) -> Result<()>);

const STEPS: &[Step] = &[
    ("fmt", fmt),
    ("layers", |_| layers::run()),
    ("deny", deny),
    ("docs", |_| docs::run(true)),
    ("header", |_| header::run(true)),
    ("clippy", clippy),
    ("test", test),
    ("test-alone", test_alone),
    ("examples", examples),
    ("doc", doc),
    ("msrv", msrv::check),
    ("package", package),
    ("loom", |_| loom::run(false, None)),
    ("install", install::check),
    ("snippets", |_| snippets::run("", false)),
    ("third-party", |_| third_party::run()),
    ("regrtest", |_| regrtest::short()),
    ("fuzz", short_fuzz),
    ("bench", smoke),
    ("instructions", instructions),
];

pub(crate) fn run(only: Option<&str>) -> Result<()> {
    let steps: Vec<&Step> = match only {
        None => STEPS.iter().collect(),
        Some("list") => {
            STEPS.iter().for_each(|(name, _)| println!("{name}"));
            return Ok(());
        }
        Some(name) => STEPS.iter().filter(|(step, _)| *step == name).collect(),
    };
    if steps.is_empty() {
        let names: Vec<&str> = STEPS.iter().map(|(name, _)| *name).collect();
        bail!("no step `{}`; the steps are {}", only.unwrap_or_default(), names.join(", "));
    }
    let shell = workspace::shell()?;
    let start = Instant::now();
    let mut times = Vec::new();
    for (name, step) in steps {
        println!("=== {name}");
        let begin = Instant::now();
        step(&shell).with_context(|| format!("`cargo xtask ci {name}` failed"))?;
        times.push(format!("{name} {} s", begin.elapsed().as_secs()));
    }
    println!("=== ci: all green in {} s ({})", start.elapsed().as_secs(), times.join(", "));
    Ok(())
}

fn fmt(shell: &Shell) -> Result<()> {
    Ok(cmd!(shell, "cargo fmt --all --check").run()?)
}

/// Licences, banned crates and sources of what is depended on; not the advisories, whose database is not everywhere.
fn deny(shell: &Shell) -> Result<()> {
    if cmd!(shell, "cargo deny --version").quiet().ignore_stdout().ignore_stderr().run().is_err() {
        println!("skipped: it needs cargo-deny; cargo install --locked cargo-deny");
        return Ok(());
    }
    Ok(cmd!(shell, "cargo deny check licenses bans sources").run()?)
}

fn clippy(shell: &Shell) -> Result<()> {
    // Not with the features of `bench`: the C and C++ sources of its peers take minutes.
    cmd!(shell, "cargo clippy --workspace --all-targets -- -D warnings").run()?;
    cmd!(shell, "cargo clippy --all-targets --all-features -- -D warnings").run()?;
    for name in CRATES {
        cmd!(shell, "cargo clippy -q -p {name} --no-default-features -- -D warnings").run()?;
    }
    Ok(())
}

fn test(shell: &Shell) -> Result<()> {
    // Some tests run an example as a child.
    cmd!(shell, "cargo build -q --workspace --examples").run()?;
    Ok(cmd!(shell, "cargo test --workspace --lib --bins --tests").run()?)
}

/// Each crate by itself, so that no crate leans on a feature that only another one switches on. Where there are no default
/// features to go without, the tests have run already, and that they build is enough.
fn test_alone(shell: &Shell) -> Result<()> {
    const WITHOUT_DEFAULTS: &[&str] = &["mimalloc-heaps", "malloc-trace", "pymem-preload"];
    for name in CRATES {
        let no_run = WITHOUT_DEFAULTS.contains(name).then_some("--no-run");
        cmd!(shell, "cargo test -q -p {name} --no-default-features --lib --tests {no_run...}")
            .run()?;
    }
    // The tests that take any profile take that of a free-threaded debug build.
    let test = cmd!(shell, "cargo test -q -p pymem-domains --test it");
    Ok(test.env("PYMEM_TEST_PROFILE", "free-threaded debug").run()?)
}

/// Each example of each crate: they assert what they show. As the tests are built, and as users build: what an optimised
/// build merges or leaves out must not be what an example shows.
fn examples(shell: &Shell) -> Result<()> {
    for name in CRATES {
        let folder = workspace::root().join("crates").join(name).join("examples");
        let mut files = shell.read_dir(&folder)?;
        files.retain(|file| file.extension().is_some_and(|end| end == "rs"));
        files.sort();
        for file in files {
            let Some(example) = file.file_stem().and_then(|stem| stem.to_str()) else { continue };
            println!("{name}: {example}");
            let lines = shell.read_file(&file)?.lines().count();
            ensure!(
                lines < 60,
                "{} has {lines} lines; show one thing, in fewer than 60",
                file.display()
            );
            for release in [None, Some("--release")] {
                let run = cmd!(shell, "cargo run -q -p {name} {release...} --example {example}");
                run.ignore_stdout().quiet().run()?;
            }
        }
    }
    Ok(())
}

fn doc(shell: &Shell) -> Result<()> {
    let _warnings = shell.push_env("RUSTDOCFLAGS", "-D warnings");
    cmd!(shell, "cargo doc --no-deps --all-features").run()?;
    Ok(cmd!(shell, "cargo test --doc --all-features").run()?)
}

/// Every crate as it would be published, built from its own package alone. In a folder that no run before has had: what cargo
/// unpacks and builds of the packed crates it knows by folder and version, and it would take an older state for this one.
fn package(shell: &Shell) -> Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    let folder = workspace::root().join(format!("target/package-{now}"));
    let packaged =
        cmd!(shell, "cargo package --quiet --workspace --allow-dirty --target-dir {folder}").run();
    shell.remove_path(folder)?;
    Ok(packaged?)
}

/// The whole benchmark at its quickest: that it runs, not how fast.
fn smoke(_shell: &Shell) -> Result<()> {
    bench::run(&["--quick".into(), "--threads=0".into()])
}

/// Half a minute of each fuzz target, where that can be done.
fn short_fuzz(shell: &Shell) -> Result<()> {
    if !fuzz::is_installed(shell) {
        println!(
            "skipped: fuzzing needs a nightly toolchain and cargo-fuzz, which are not installed"
        );
        return Ok(());
    }
    fuzz::run(30, None, true)
}

/// Instructions of the hot paths against the committed baseline, which callgrind counts the same on a busy machine.
fn instructions(shell: &Shell) -> Result<()> {
    if cmd!(shell, "valgrind --version").quiet().ignore_stdout().ignore_stderr().run().is_err() {
        println!("skipped: counting instructions needs valgrind, which is not installed");
        return Ok(());
    }
    bench::run(&["--instructions".into()])
}
