//! Owns `cargo xtask fuzz`: runs every fuzz target for the same time, one by one or all at once. Each run begins with the inputs
//! in `fuzz/kept`, which have found bugs.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, ensure};
use xshell::cmd;

use crate::workspace;

/// A target, and the feature of `fuzz/` that it is built with.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Target {
    name: String,
    feature: Option<&'static str>,
}

/// Targets that run a second time, with a feature.
const VARIANTS: &[(&str, &str)] = &[("pymalloc", "hardened")];

/// Runs each target of `fuzz/` for `seconds` and prints how many inputs each target tried.
///
/// # Errors
///
/// A target that does not build, or that found a bug. libFuzzer leaves the input in `fuzz/artifacts`.
pub(crate) fn run(seconds: u32, only: Option<&str>, together: bool) -> Result<()> {
    let shell = workspace::shell()?;
    let version = cmd!(shell, "cargo +nightly fuzz --version").quiet();
    ensure!(
        version.ignore_stdout().ignore_stderr().run().is_ok(),
        "fuzzing needs a nightly toolchain and cargo-fuzz; install them with \
         `rustup toolchain install nightly` and `cargo install cargo-fuzz`"
    );
    let targets = targets(only)?;
    // One build of all programs takes less time than a build of each.
    if targets.iter().filter(|target| target.feature.is_none()).count() > 1 {
        cmd!(shell, "cargo +nightly fuzz build").run()?;
    }
    for target in &targets {
        let build = target.cargo_fuzz("build");
        cmd!(shell, "cargo {build...}").quiet().run()?;
    }
    println!("=== fuzz: {} targets, {seconds} s each", targets.len());
    let run = |target: &Target| target.run(seconds);
    let results: Vec<Result<u64>> = if together {
        thread::scope(|scope| {
            let runs: Vec<_> = targets.iter().map(|target| scope.spawn(|| run(target))).collect();
            runs.into_iter().map(|run| run.join().expect("no panic")).collect()
        })
    } else {
        targets.iter().map(run).collect()
    };
    for (target, result) in targets.iter().zip(results) {
        println!("{}: {} executions", target.title(), result?);
    }
    Ok(())
}

impl Target {
    fn title(&self) -> String {
        match self.feature {
            Some(feature) => format!("{} ({feature})", self.name),
            None => self.name.clone(),
        }
    }

    /// The arguments of `cargo` for a command of cargo-fuzz. A variant's program has the name of the plain one, so that the variant
    /// needs a target folder of its own.
    fn cargo_fuzz(&self, command: &str) -> Vec<String> {
        let mut arguments = ["+nightly", "fuzz", command, &self.name].map(String::from).to_vec();
        if let Some(feature) = self.feature {
            let usual = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
            let usual = usual.unwrap_or_else(|| workspace::root().join("fuzz/target"));
            let folder = usual.join(format!("fuzz-{feature}"));
            arguments.push(format!("--features={feature}"));
            arguments.push(format!("--target-dir={}", folder.display()));
        }
        arguments
    }

    /// Runs the target; returns the number of inputs that it tried.
    fn run(&self, seconds: u32) -> Result<u64> {
        // libFuzzer begins with the inputs of both folders, and adds new ones to the first.
        let [corpus, kept] = ["corpus", "kept"]
            .map(|folder| workspace::root().join("fuzz").join(folder).join(&self.name));
        fs::create_dir_all(&corpus)?;
        let mut command = Command::new("cargo");
        command.args(self.cargo_fuzz("run")).args([corpus, kept]).arg("--");
        command
            .arg(format!("-max_total_time={seconds}"))
            .args(["-max_len=4096", "-print_final_stats=1"]);
        // The records of domains live for ever by design. Each target asserts that it leaks no block of its own.
        command.env("ASAN_OPTIONS", "detect_leaks=0").current_dir(workspace::root());
        let output = command.stdin(Stdio::null()).output()?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "fuzz target {} found an input that fails; it is in fuzz/artifacts/{}:\n{text}",
            self.title(),
            self.name
        );
        let count =
            text.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
        let count = count.and_then(|count| count.trim().parse().ok());
        count
            .with_context(|| format!("fuzz target {} printed no statistics:\n{text}", self.title()))
    }
}

/// The targets, from their files.
fn targets(only: Option<&str>) -> Result<Vec<Target>> {
    let mut targets = Vec::new();
    for entry in fs::read_dir(workspace::root().join("fuzz/fuzz_targets"))? {
        let path = entry?.path();
        if let (Some(stem), Some("rs")) =
            (path.file_stem(), path.extension().and_then(|end| end.to_str()))
        {
            targets.push(Target { name: stem.to_string_lossy().into_owned(), feature: None });
        }
    }
    let variants = VARIANTS.iter();
    targets.extend(
        variants.map(|&(name, feature)| Target { name: name.into(), feature: Some(feature) }),
    );
    targets.sort();
    targets.retain(|target| only.is_none_or(|only| only == target.name));
    ensure!(!targets.is_empty(), "no fuzz target is called `{}`", only.unwrap_or_default());
    Ok(targets)
}
