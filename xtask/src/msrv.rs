//! Owns the check that the crates build with the oldest compiler that they promise, their `rust-version`.

use std::env;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use xshell::{Shell, cmd};

use crate::workspace;

/// Checks the libraries with the promised compiler and an option of cargo that chooses features, if it is installed.
///
/// # Errors
///
/// Crates that promise different compilers, or a crate that does not build.
pub(crate) fn check(shell: &Shell, features: &str) -> Result<()> {
    let version = promised(shell)?;
    let Some(compiler) = find(shell, &version) else {
        println!(
            "skipped: no rustc {version} here; rustup toolchain install {version}, or put one on PATH"
        );
        return Ok(());
    };
    println!("rustc {version}: {}", compiler.display());
    let _compiler = shell.push_env("RUSTC", compiler);
    let target = workspace::target().join("msrv");
    Ok(cmd!(shell, "cargo check --quiet --target-dir {target} {features}").run()?)
}

/// The `rust-version` of every crate; the tools have one of their own.
fn promised(shell: &Shell) -> Result<String> {
    let packages = workspace::packages(shell)?;
    let crates = packages.iter().filter(|package| package["publish"].is_null());
    let mut versions: Vec<&str> =
        crates.map(|package| package["rust_version"].as_str().unwrap_or("none")).collect();
    versions.dedup();
    ensure!(versions.len() == 1, "the crates promise different compilers: {}", versions.join(", "));
    Ok(versions[0].to_owned())
}

/// A compiler of this version: rustup's, or one on `PATH`.
fn find(shell: &Shell, version: &str) -> Option<PathBuf> {
    let ask = cmd!(shell, "rustup which --toolchain {version} rustc").quiet().ignore_stderr();
    let of_rustup = ask.read().ok().map(PathBuf::from);
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&path).map(|folder| folder.join("rustc"));
    of_rustup.into_iter().chain(on_path).find(|compiler| {
        let answer = cmd!(shell, "{compiler} --version").quiet().ignore_stderr().read();
        let found = answer.ok().and_then(|text| Some(text.split_whitespace().nth(1)?.to_owned()));
        found.is_some_and(|found| found == version || found.starts_with(&format!("{version}.")))
    })
}
