//! Owns what the benchmark of profilers fetches: memray, and programs of pyperformance.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

/// The script that writes the programs.
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/pyperformance.py");

/// Programs that allocate at very many places, for profilers: templates, a formatter of documents, a parser, an optimizer of queries,
/// algebra.
pub(crate) const MANY_SITES: &[&str] =
    &["django_template", "docutils", "genshi_xml", "html5lib", "sqlglot_optimize", "sympy_str"];

/// The version that the published figures are of.
const MEMRAY: &str = "memray==1.20.0";

/// The folder below `folder` with the programs called `wanted`, or with all of them where none is named; those that are not there are
/// fetched first.
pub(crate) fn programs(folder: &Path, wanted: &[&str]) -> Result<PathBuf> {
    let name = if wanted.is_empty() { "pyperformance" } else { "pyperformance-sites" };
    let programs = folder.join(name);
    // Written last, so that a run that was cut short begins anew.
    let is_complete = programs.join("complete");
    if !is_complete.exists() {
        let mut command = Command::new("python3");
        let status = command.arg(SCRIPT).arg(&programs).args(wanted).status()?;
        ensure!(status.success(), "the programs of pyperformance cannot be fetched: {status}");
        std::fs::write(is_complete, "")?;
    }
    Ok(programs)
}

/// memray for an interpreter of `version`, such as 3.13, in a folder of its own below `folder`; `None` where it cannot be had.
pub(crate) fn memray(version: &str, folder: &Path) -> Option<PathBuf> {
    let target = folder.join(format!("memray-{version}"));
    if target.join("memray").exists() {
        return Some(target);
    }
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--root-user-action=ignore"])
        .args(["--only-binary=:all:", "--python-version", version, "--target"])
        .arg(&target)
        .arg(MEMRAY);
    let is_there = pip.status().is_ok_and(|status| status.success());
    is_there.then_some(target)
}
