//! Owns the list of checks that must be green before a change lands, and runs them in order of cost.

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use xshell::{Shell, cmd};

use crate::{bench, docs, header, layers, loom};

/// A named check; the name is what `cargo xtask ci NAME` takes.
type Step = (&'static str, fn(&Shell) -> Result<()>);

const STEPS: &[Step] = &[
    ("fmt", fmt),
    ("layers", |_| layers::run()),
    ("docs", |_| docs::run(true)),
    ("header", |_| header::run(true)),
    ("clippy", clippy),
    ("test", test),
    ("test-alone", test_alone),
    ("examples", examples),
    ("doc", doc),
    ("loom", |_| loom::run(false, None)),
    ("python", python),
    ("bench", smoke),
    ("instructions", instructions),
];

/// The published crates, bottom layer first.
const CRATES: &[&str] = &[
    "malloc-api",
    "pymem-sync",
    "pymalloc-core",
    "mimalloc-heaps",
    "memdebug",
    "malloc-trace",
    "pymem-domains",
    "heap-report",
    "pymem-preload",
];

/// Examples that measure time, which takes minutes in a build for tests.
const LONG_EXAMPLES: &[&str] = &["throughput"];

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
    let shell = Shell::new()?;
    shell.change_dir(crate::root());
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

fn clippy(shell: &Shell) -> Result<()> {
    cmd!(shell, "cargo clippy --workspace --exclude bench --all-targets -- -D warnings").run()?;
    cmd!(shell, "cargo clippy --all-targets --all-features -- -D warnings").run()?;
    // Without the peers, whose C and C++ sources take minutes.
    cmd!(shell, "cargo clippy -p bench --no-default-features --features domains --all-targets -- -D warnings").run()?;
    for name in CRATES {
        cmd!(shell, "cargo clippy -q -p {name} --no-default-features -- -D warnings").run()?;
    }
    Ok(())
}

fn test(shell: &Shell) -> Result<()> {
    // Some tests run an example as a child.
    cmd!(shell, "cargo build -q --workspace --exclude bench --examples").run()?;
    cmd!(shell, "cargo test --workspace --exclude bench --lib --bins --tests").run()?;
    Ok(cmd!(
        shell,
        "cargo test -p bench --no-default-features --features domains --lib --bins --tests"
    )
    .run()?)
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
    Ok(())
}

/// Each example of each crate: they assert what they show. In the build of `test`, so nothing is compiled twice.
fn examples(shell: &Shell) -> Result<()> {
    for name in CRATES {
        let folder = crate::root().join("crates").join(name).join("examples");
        let mut files = shell.read_dir(&folder)?;
        files.sort();
        for file in files {
            let Some(example) = file.file_stem().and_then(|stem| stem.to_str()) else { continue };
            if LONG_EXAMPLES.contains(&example) {
                continue;
            }
            println!("{name}: {example}");
            let run = cmd!(shell, "cargo run -q -p {name} --example {example}");
            run.ignore_stdout().quiet().run()?;
        }
    }
    Ok(())
}

fn doc(shell: &Shell) -> Result<()> {
    let _warnings = shell.push_env("RUSTDOCFLAGS", "-D warnings");
    cmd!(shell, "cargo doc --no-deps --all-features").run()?;
    Ok(cmd!(shell, "cargo test --doc --all-features").run()?)
}

/// The README's first command, on the python3 of this machine.
fn python(shell: &Shell) -> Result<()> {
    let program = "import json; print(json.dumps({'hello': [1, 2, 3]}))";
    let xtask = std::env::current_exe().context("the path of this program")?;
    let output = cmd!(shell, "{xtask} python -- -c {program}").read()?;
    ensure!(
        output == r#"{"hello": [1, 2, 3]}"#,
        "a Python on the preload printed `{output}` instead of the JSON text"
    );
    println!("{output}");
    Ok(())
}

/// The whole benchmark at its quickest: that it runs, not how fast.
fn smoke(_shell: &Shell) -> Result<()> {
    bench::run(&["--quick".into(), "--threads=0".into()])
}

/// Instructions of the hot paths against the committed baseline, which callgrind counts the same on a busy machine.
fn instructions(shell: &Shell) -> Result<()> {
    if cmd!(shell, "valgrind --version").quiet().ignore_stdout().ignore_stderr().run().is_err() {
        println!("skipped: counting instructions needs valgrind, which is not installed");
        return Ok(());
    }
    bench::run(&["--instructions".into()])
}
