//! Owns `cargo xtask fuzz`: every fuzz target in turn, for the same time each.

use std::fs;

use anyhow::{Context, Result, ensure};
use xshell::{Shell, cmd};

/// Runs each target of `fuzz/` for `seconds`; stops at the first finding, whose input libFuzzer leaves in `fuzz/artifacts`.
pub(crate) fn run(seconds: u32, only: Option<&str>) -> Result<()> {
    let shell = Shell::new()?;
    shell.change_dir(crate::root());
    ensure!(
        cmd!(shell, "cargo +nightly fuzz --version")
            .quiet()
            .ignore_stdout()
            .ignore_stderr()
            .run()
            .is_ok(),
        "fuzzing needs a nightly toolchain and cargo-fuzz; install them with \
         `rustup toolchain install nightly` and `cargo install cargo-fuzz`"
    );
    // Records of domains live for ever by design; what a target's own blocks leak, it asserts itself.
    let _leaks = shell.push_env("ASAN_OPTIONS", "detect_leaks=0");
    for target in targets(only)? {
        let corpus = format!("fuzz/corpus/{target}");
        fs::create_dir_all(crate::root().join(&corpus))?;
        println!("=== fuzz {target}, {seconds} s");
        let seconds = seconds.to_string();
        cmd!(shell, "cargo +nightly fuzz run {target} {corpus} -- -max_total_time={seconds} -max_len=4096 -print_final_stats=1")
            .run()
            .with_context(|| format!("fuzz target {target} found an input that fails; it is in fuzz/artifacts/{target}"))?;
    }
    Ok(())
}

/// The names of the targets, from their files.
fn targets(only: Option<&str>) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(crate::root().join("fuzz/fuzz_targets"))? {
        let path = entry?.path();
        if let (Some(stem), Some("rs")) =
            (path.file_stem(), path.extension().and_then(|end| end.to_str()))
        {
            names.push(stem.to_string_lossy().into_owned());
        }
    }
    names.sort();
    names.retain(|name| only.is_none_or(|only| only == name));
    ensure!(!names.is_empty(), "no fuzz target is called `{}`", only.unwrap_or_default());
    Ok(names)
}
