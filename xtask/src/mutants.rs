//! Owns `cargo xtask mutants`: cargo-mutants plants faults in a crate, one at a time, and the crate's tests must notice each.
//!
//! A crate with many possible faults is sampled by a fixed seed, so that two runs on one state plant the same. What may be planted
//! stands in `.cargo/mutants.toml`.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::Value;
use xshell::{Shell, cmd};

use crate::workspace;

/// The crates whose tests are measured so, with the features that their tests need beside the defaults.
const MEASURED: &[(&str, &str)] = &[
    ("pymem-sync", "fork"),
    ("pymalloc-core", ""),
    ("mimalloc-heaps", ""),
    ("memdebug", "backtrace"),
    ("malloc-trace", ""),
    ("pymem-domains", ""),
];

/// The longest file that a build or a test may write: a log without its limit would fill the disk.
const FILE_BYTES: u64 = 1 << 30;

/// The share of the possible faults that tests must notice, in per cent.
const MUST_NOTICE: usize = 90;

/// Plants at most `sample` faults in `only`, or in each measured crate. `seed` chooses them; a greater sample has those of a smaller
/// one.
///
/// # Errors
///
/// Tests that fail without a fault, and crates whose tests notice too few.
pub(crate) fn run(only: Option<&str>, sample: usize, seed: u64) -> Result<()> {
    let shell = workspace::shell()?;
    let has_tool = cmd!(shell, "cargo mutants --version").quiet().ignore_stdout().ignore_stderr();
    ensure!(
        has_tool.run().is_ok(),
        "this needs cargo-mutants and cargo-nextest: `cargo install --locked cargo-mutants cargo-nextest`"
    );
    let is_asked = |name| only.is_none_or(|only| only == name);
    let mut crates = MEASURED.iter().filter(|(name, _)| is_asked(*name)).peekable();
    ensure!(crates.peek().is_some(), "only these crates are measured: {MEASURED:?}");
    let file_size = Rlimit { current: Some(FILE_BYTES), ..getrlimit(Resource::Fsize) };
    setrlimit(Resource::Fsize, file_size)?;
    let mut faults = Vec::new();
    for (name, features) in crates {
        let tally = measure(&shell, name, features, sample, seed)?;
        println!("{name}: {tally}");
        if tally.noticed * 100 < tally.planted * MUST_NOTICE {
            faults.push(format!("{name}: {tally}"));
        }
    }
    ensure!(faults.is_empty(), "too few planted faults are noticed:\n{}", faults.join("\n"));
    Ok(())
}

/// What became of the faults that were planted in one crate.
struct Tally {
    possible: usize,
    /// Those that compile.
    planted: usize,
    noticed: usize,
    survivors: BTreeSet<String>,
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { possible, planted, noticed, survivors } = self;
        write!(f, "{noticed} of {planted} planted faults noticed, of {possible} possible ones")?;
        survivors.iter().try_for_each(|name| write!(f, "\n    {name}"))
    }
}

fn measure(shell: &Shell, name: &str, features: &str, sample: usize, seed: u64) -> Result<Tally> {
    let list = cmd!(shell, "cargo mutants --list --package {name}").quiet().read()?;
    let mut chosen: Vec<&str> = list.lines().collect();
    let possible = chosen.len();
    ensure!(possible > 0, "cargo-mutants finds nothing to change in {name}");
    shuffle(&mut chosen, seed);
    chosen.truncate(sample);
    let pattern = format!("^({})$", chosen.into_iter().map(escape).collect::<Vec<_>>().join("|"));
    let output = workspace::target().join("mutants").join(name);
    fs::create_dir_all(&output)?;
    // One folder for each run's copy of the tree, so that dependencies are built once, and no debug information but the lines,
    // by which the tests of reports know frames.
    let built = workspace::target().join("mutants/build");
    // Its status tells of survivors, which are counted below.
    // A program of tests of its own, which only one crate has.
    let has_accounts = workspace::root().join("crates").join(name).join("tests/account").exists();
    let more = if has_accounts { &["--", "--test", "account"][..] } else { &[] };
    cmd!(shell, "cargo mutants --package {name} --features {features} --re {pattern} --output {output} --no-times {more...}")
        .env("CARGO_TARGET_DIR", built)
        .env("CARGO_PROFILE_DEV_DEBUG", "line-tables-only")
        .quiet()
        .ignore_status()
        .run()?;
    let path = output.join("mutants.out/outcomes.json");
    let text =
        fs::read_to_string(&path).with_context(|| format!("no result in {}", path.display()))?;
    tally(possible, &serde_json::from_str(&text)?)
}

/// Reads the file in which cargo-mutants leaves what became of each fault.
fn tally(possible: usize, outcomes: &Value) -> Result<Tally> {
    let list = outcomes["outcomes"].as_array().context("cargo-mutants left no outcomes")?;
    let mut tally = Tally { possible, planted: 0, noticed: 0, survivors: BTreeSet::new() };
    for outcome in list {
        let fault = outcome["scenario"]["Mutant"]["name"].as_str();
        match (fault, outcome["summary"].as_str()) {
            (None, Some("Success")) | (Some(_), Some("Unviable")) => {}
            (Some(_), Some("CaughtMutant" | "Timeout")) => {
                tally.planted += 1;
                tally.noticed += 1;
            }
            (Some(name), Some("MissedMutant")) => {
                tally.planted += 1;
                tally.survivors.insert(name.to_owned());
            }
            (fault, summary) => anyhow::bail!(
                "{}: {}; see target/mutants",
                fault.unwrap_or("without a fault"),
                summary.unwrap_or("no summary")
            ),
        }
    }
    Ok(tally)
}

/// Fisher and Yates' shuffle, with numbers of Marsaglia's xorshift.
fn shuffle<T>(items: &mut [T], seed: u64) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for at in (1..items.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let other = usize::try_from(state % (at as u64 + 1)).unwrap_or_default();
        items.swap(at, other);
    }
}

/// A regular expression for this text.
fn escape(text: &str) -> String {
    let special = |c: char| !c.is_alphanumeric() && !" _:/<>=,&'-\"".contains(c);
    text.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn outcome(name: &str, summary: &str) -> Value {
        json!({"scenario": {"Mutant": {"name": name}}, "summary": summary})
    }

    #[test]
    fn what_compiles_counts_and_survivors_are_named() {
        let outcomes = json!({"outcomes": [
            {"scenario": "Baseline", "summary": "Success"},
            outcome("a", "CaughtMutant"),
            outcome("b", "Timeout"),
            outcome("c", "Unviable"),
            outcome("d", "MissedMutant"),
        ]});
        let tally = tally(9, &outcomes).unwrap();
        assert_eq!(tally.to_string(), "2 of 3 planted faults noticed, of 9 possible ones\n    d");
    }

    #[test]
    fn tests_that_fail_without_a_fault_are_an_error() {
        let outcomes = json!({"outcomes": [{"scenario": "Baseline", "summary": "Failure"}]});
        assert!(tally(9, &outcomes).is_err());
    }

    #[test]
    fn a_sample_is_the_same_each_time_and_each_item_once() {
        let shuffled = |seed| {
            let mut items: Vec<u32> = (0..100).collect();
            shuffle(&mut items, seed);
            items
        };
        assert_eq!(shuffled(7), shuffled(7));
        assert_ne!(shuffled(7), shuffled(8));
        let mut sorted = shuffled(7);
        sorted.sort_unstable();
        assert!(sorted.iter().copied().eq(0..100));
    }

    #[test]
    fn special_characters_are_escaped() {
        assert_eq!(escape("a.rs:1:2: replace + with -"), "a\\.rs:1:2: replace \\+ with -");
        assert_eq!(escape("f -> Option<u8> with Some(1)"), "f -> Option<u8> with Some\\(1\\)");
    }
}
