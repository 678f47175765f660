//! Owns the facts about the workspace that several commands need: its folders, its crates, their sources.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;
use xshell::{Cmd, Shell, cmd};

/// The published crates, bottom layer first.
pub(crate) const CRATES: &[&str] = &[
    "malloc-api",
    "pymem-sync",
    "pymalloc-core",
    "mimalloc-heaps",
    "memdebug",
    "malloc-trace",
    "heap-profile",
    "pymem-raw-alloc",
    "pymem-domains",
    "heap-report",
    "pymem-preload",
];

/// The workspace's root folder.
pub(crate) fn root() -> PathBuf {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().map_or(manifest.clone(), PathBuf::from)
}

/// The folder that cargo builds in.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// A shell in the root folder.
pub(crate) fn shell() -> Result<Shell> {
    let shell = Shell::new()?;
    shell.change_dir(root());
    Ok(shell)
}

/// The workspace's packages, as `cargo metadata` describes them.
pub(crate) fn packages(shell: &Shell) -> Result<Vec<Value>> {
    let metadata = cmd!(shell, "cargo metadata --format-version 1 --no-deps").quiet().read()?;
    let mut metadata: Value = serde_json::from_str(&metadata)?;
    match metadata["packages"].take() {
        Value::Array(packages) => Ok(packages),
        _ => anyhow::bail!("cargo metadata has no packages"),
    }
}

/// Runs a `cargo build`, or a `cargo test --no-run`, and returns the programs that it makes, by name.
pub(crate) fn programs(build: Cmd<'_>) -> Result<Vec<(String, PathBuf)>> {
    let messages = build.arg("--message-format=json-render-diagnostics").quiet().read()?;
    let mut programs = Vec::new();
    for line in messages.lines() {
        let message: Value = serde_json::from_str(line)?;
        if let (Some(name), Some(path)) =
            (message["target"]["name"].as_str(), message["executable"].as_str())
        {
            programs.push((name.to_owned(), PathBuf::from(path)));
        }
    }
    programs.sort();
    Ok(programs)
}

/// Every Rust file below the `src` folders of `folder`, in order.
pub(crate) fn sources(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = rust_files(folder)?;
    files.retain(|path| path.components().any(|part| part.as_os_str() == "src"));
    Ok(files)
}

/// Every Rust file below `folder`, in order.
pub(crate) fn rust_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        let entries =
            fs::read_dir(&next).with_context(|| format!("cannot read {}", next.display()))?;
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}
