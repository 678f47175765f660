//! Owns what the benchmark of profilers fetches: memray, and programs of pyperformance.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

/// The script that writes the programs.
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/pyperformance.py");

/// Programs of other people's packages that run from 3.13 on: templates, a formatter of documents, a parser, an optimizer of queries,
/// algebra.
const PROGRAMS: [&str; 6] =
    ["django_template", "docutils", "genshi_xml", "html5lib", "sqlglot_optimize", "sympy_str"];

/// The version that the published figures are of.
const MEMRAY: &str = "memray==1.20.0";

/// The programs below `folder`, which are fetched by `interpreter` if they are not there.
pub(crate) fn programs(interpreter: &Path, folder: &Path) -> Result<PathBuf> {
    let programs = folder.join("pyperformance");
    if !PROGRAMS.iter().all(|name| programs.join(name).with_extension("py").exists()) {
        let mut command = Command::new(interpreter);
        let status = command.arg(SCRIPT).arg(&programs).args(PROGRAMS).status()?;
        ensure!(status.success(), "the programs of pyperformance cannot be fetched: {status}");
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
