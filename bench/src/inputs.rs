//! Owns the choice of traces: named files and folders, else those that ship with the repository.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use pymem_bench::loads::{LOADS, Load};
use pymem_bench::trace::{self, Prepared};

/// Environment variable with trace files or folders of them, separated as in `PATH`.
const TRACES_VARIABLE: &str = "PYMEM_TRACES";

/// The traces that ship with the repository.
const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/traces");

/// What is replayed.
#[derive(Debug, Clone)]
pub(crate) enum Input {
    /// A trace file.
    Trace(PathBuf),
    /// A generated load.
    Load(&'static Load),
}

impl Input {
    /// Its prepared form in `folder`.
    pub(crate) fn prepare(&self, folder: &Path) -> Result<Prepared> {
        match self {
            Self::Trace(path) => trace::prepare(path, folder),
            Self::Load(load) => trace::prepare_ops(load.name, &load.ops(), folder),
        }
    }

    /// Whether the input was generated, and is no program's.
    pub(crate) fn is_generated(&self) -> bool {
        matches!(self, Self::Load(_))
    }
}

/// What the arguments ask for: [trace files](files), and the generated loads unless traces were named by argument.
pub(crate) fn find(arguments: &[PathBuf], only: &[String]) -> Result<Vec<Input>> {
    let mut inputs: Vec<Input> = files(arguments, only)?.into_iter().map(Input::Trace).collect();
    if arguments.is_empty() {
        let wanted = |load: &&Load| {
            only.is_empty() || only.iter().any(|word| load.name.contains(word.as_str()))
        };
        inputs.extend(LOADS.iter().filter(wanted).map(Input::Load));
    }
    ensure!(
        !inputs.is_empty(),
        "nothing to replay: name files or folders by --trace or {TRACES_VARIABLE}"
    );
    Ok(inputs)
}

/// The trace files of the arguments, of the environment or of the repository, the first of these that names any,
/// whose file name contains one of the words of `only`; sorted.
fn files(arguments: &[PathBuf], only: &[String]) -> Result<Vec<PathBuf>> {
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
