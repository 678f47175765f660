//! Owns `cargo xtask semver`: what the public interfaces of the published crates break that a release has promised.

use anyhow::{Result, ensure};
use xshell::cmd;

use crate::workspace;

/// Compares every published crate with what it was at `baseline`, a revision; without one, at the last tag.
///
/// # Errors
///
/// What breaks and needs another version than the crate has, or that the tool is missing.
pub(crate) fn run(baseline: Option<String>) -> Result<()> {
    let shell = workspace::shell()?;
    let tag = || cmd!(shell, "git describe --tags --abbrev=0").quiet().ignore_stderr().read().ok();
    let Some(baseline) = baseline.or_else(tag) else {
        println!(
            "skipped: no release is tagged yet; name what to compare with by `--baseline REVISION`"
        );
        return Ok(());
    };
    let tool = cmd!(shell, "cargo semver-checks --version").quiet().ignore_stdout().ignore_stderr();
    ensure!(
        tool.run().is_ok(),
        "cargo-semver-checks is not installed: `cargo install --locked cargo-semver-checks`"
    );
    Ok(cmd!(shell, "cargo semver-checks --workspace --baseline-rev {baseline}").run()?)
}
