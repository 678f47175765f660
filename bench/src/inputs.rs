//! Owns the choice of traces: named files and folders, else those that ship with the repository.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// Environment variable with trace files or folders of them, separated as in `PATH`.
const TRACES_VARIABLE: &str = "PYMEM_TRACES";

/// The traces that ship with the repository.
const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/traces");

/// The trace files of the arguments, of the environment or of the repository, the first of these that names any,
/// whose file name contains one of the words of `only`; sorted.
pub(crate) fn find(arguments: &[PathBuf], only: &[String]) -> Result<Vec<PathBuf>> {
    let mut named: Vec<PathBuf> = arguments.to_vec();
    if named.is_empty() {
        let variable = std::env::var_os(TRACES_VARIABLE).unwrap_or_default();
        named = std::env::split_paths(&variable).filter(|path| path != Path::new("")).collect();
    }
    if named.is_empty() {
        named.push(PathBuf::from(SHIPPED));
    }
    let mut files = Vec::new();
    for path in named {
        if path.is_dir() {
            files.extend(folder(&path).with_context(|| format!("cannot list {}", path.display()))?);
        } else {
            files.push(path);
        }
    }
    files.retain(|path| {
        only.is_empty() || only.iter().any(|word| name(path).contains(word.as_str()))
    });
    files.sort();
    ensure!(!files.is_empty(), "no traces: name files or folders by --trace or {TRACES_VARIABLE}");
    Ok(files)
}

fn folder(path: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let path = entry?.path();
        if name(&path).ends_with(".trc") || name(&path).ends_with(".trc.zst") {
            files.push(path);
        }
    }
    Ok(files)
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(OsStr::to_str).unwrap_or_default()
}
