//! Owns the runs of whole Python programs: the unmodified interpreter with and without our library, in turn.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::report::{Origin, Ratio};

/// The programs that ship with the repository.
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/programs");

/// What runs with the library preloaded: the values of `PYTHONMALLOC`.
const VARIANTS: [&str; 2] = ["pymalloc", "mimalloc"];

/// What a run of the programs found.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Programs {
    /// Where and when.
    pub(crate) origin: Origin,
    /// The interpreter.
    pub(crate) interpreter: String,
    /// Runs of each program and variant.
    pub(crate) rounds: usize,
    /// Rows of our table that were measured.
    pub(crate) variants: Vec<String>,
    /// One entry a program.
    pub(crate) results: Vec<ProgramResult>,
}

/// One program's runs.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ProgramResult {
    /// The program's name.
    pub(crate) program: String,
    /// Runs without the library.
    pub(crate) plain: Vec<Usage>,
    /// Runs with it, one list a variant.
    pub(crate) preloaded: Vec<Vec<Usage>>,
}

/// What one process used.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Usage {
    /// Processor time in user and system mode, in seconds.
    pub(crate) cpu_seconds: f64,
    /// Highest resident set, in bytes.
    pub(crate) peak_bytes: u64,
}

impl ProgramResult {
    /// Processor time of a variant, relative to the plain runs.
    pub(crate) fn time(&self, variant: usize) -> Ratio {
        self.ratio(variant, |usage| usage.cpu_seconds)
    }

    /// Peak resident set of a variant, relative to the plain runs.
    pub(crate) fn memory(&self, variant: usize) -> Ratio {
        self.ratio(variant, |usage| usage.peak_bytes as f64)
    }

    fn ratio(&self, variant: usize, of: fn(&Usage) -> f64) -> Ratio {
        let values = |runs: &[Usage]| runs.iter().map(of).collect::<Vec<f64>>();
        Ratio::of(&values(&self.preloaded[variant]), &values(&self.plain))
    }
}

impl Programs {
    /// Geometric mean of the times.
    pub(crate) fn time(&self, variant: usize) -> Ratio {
        Ratio::geomean(&self.results.iter().map(|result| result.time(variant)).collect::<Vec<_>>())
    }

    /// Geometric mean of the peaks.
    pub(crate) fn memory(&self, variant: usize) -> Ratio {
        Ratio::geomean(
            &self.results.iter().map(|result| result.memory(variant)).collect::<Vec<_>>(),
        )
    }
}

/// Runs every program whose name contains a word of `only`, `rounds` times under each variant.
pub(crate) fn run(
    interpreter: &Path,
    library: &Path,
    only: &[String],
    rounds: usize,
    scratch: &Path,
    origin: Origin,
) -> Result<Programs> {
    ensure!(library.exists(), "{} is missing: build pymem-preload", library.display());
    let output = scratch.join("output");
    let mut results = Vec::new();
    for program in find(only)? {
        let name = program.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let mut result = ProgramResult {
            program: name,
            plain: Vec::new(),
            preloaded: vec![Vec::new(); VARIANTS.len()],
        };
        let process = |variant: Option<&str>| -> Result<(Usage, Vec<u8>)> {
            let mut command = Command::new(interpreter);
            command.arg(&program).env("PYTHONHASHSEED", "0").env_remove("PYTHONMALLOC");
            command.stdin(Stdio::null()).stdout(File::create(&output)?);
            if let Some(name) = variant {
                command.env("LD_PRELOAD", library).env("PYTHONMALLOC", name);
            }
            let usage =
                usage(&mut command).with_context(|| format!("{} failed", program.display()))?;
            Ok((usage, std::fs::read(&output)?))
        };
        for _ in 0..rounds {
            let (usage, expected) = process(None)?;
            result.plain.push(usage);
            for (variant, runs) in VARIANTS.iter().zip(&mut result.preloaded) {
                let (usage, output) = process(Some(variant))?;
                ensure!(
                    output == expected,
                    "{} printed something else under {variant}",
                    program.display()
                );
                runs.push(usage);
            }
        }
        eprintln!("{}: done", result.program);
        results.push(result);
    }
    ensure!(!results.is_empty(), "no program's name contains one of {only:?}");
    let variants = VARIANTS.map(str::to_owned).to_vec();
    Ok(Programs { origin, interpreter: version(interpreter)?, rounds, variants, results })
}

fn find(only: &[String]) -> Result<Vec<PathBuf>> {
    let mut programs = Vec::new();
    for entry in std::fs::read_dir(FOLDER).context("bench/programs is missing")? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.ends_with(".py")
            && (only.is_empty() || only.iter().any(|word| name.contains(word.as_str())))
        {
            programs.push(path);
        }
    }
    programs.sort();
    Ok(programs)
}

fn version(interpreter: &Path) -> Result<String> {
    let output = Command::new(interpreter).arg("-V").output()?;
    let text = String::from_utf8_lossy(&output.stdout).replace("Python", "CPython");
    Ok(format!("{} ({})", text.trim(), interpreter.display()))
}

/// Runs a process to its end and asks the system what it used.
fn usage(command: &mut Command) -> Result<Usage> {
    let child = command.spawn()?;
    let mut status = 0;
    // SAFETY: all zeros are a valid `rusage`: it has numbers only.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let id = child.id().cast_signed();
    // SAFETY: both places are writable; the child is ours, and `child` is not waited for besides.
    let waited = unsafe { libc::wait4(id, &raw mut status, 0, &raw mut usage) };
    ensure!(waited == id, "cannot wait for the program: {}", std::io::Error::last_os_error());
    ensure!(
        libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0,
        "the program ended with status {status}"
    );
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    Ok(Usage {
        cpu_seconds: seconds(usage.ru_utime) + seconds(usage.ru_stime),
        peak_bytes: 1024 * usage.ru_maxrss.cast_unsigned(),
    })
}
