//! Owns the runs of whole Python programs: the unmodified interpreter in several setups, in turn.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::measure::progress;
use crate::origin;
use crate::report::{Origin, Ratio, median};

/// The programs that ship with the repository.
pub(crate) const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/programs");

/// One way to start the interpreter.
pub(crate) struct Setup {
    /// The value of `PYTHONMALLOC`, if it is set.
    malloc: Option<&'static str>,
    /// Whether the library is preloaded.
    is_ours: bool,
    /// What watches the program's memory.
    profiler: Profiler,
}

/// What watches a program's memory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Profiler {
    None,
    /// Ours, with what follows the file in `PYMEM_PROFILE`.
    Ours(&'static str),
    /// CPython's, by this option.
    Tracemalloc(&'static str),
    /// memray, told to see the blocks of CPython's own allocators too.
    Memray,
}

impl Profiler {
    const fn is_guest(self) -> bool {
        matches!(self, Self::Tracemalloc(_) | Self::Memray)
    }
}

impl Setup {
    /// The name of the setup: the configuration, or that the interpreter is plain.
    pub(crate) fn name(&self) -> &'static str {
        match (self.is_ours, self.malloc) {
            (true, Some(name)) => name,
            (true, None) => "ours",
            (false, _) => "plain CPython",
        }
    }
}

/// A setup beside the one that it is compared with, by their places among the setups.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Column {
    /// Says which setup.
    pub(crate) title: String,
    row: usize,
    baseline: usize,
}

/// What is compared with what.
pub(crate) struct Comparison {
    pub(crate) setups: &'static [Setup],
    columns: &'static [(&'static str, usize, usize)],
}

const fn setup(malloc: Option<&'static str>, is_ours: bool) -> Setup {
    Setup { malloc, is_ours, profiler: Profiler::None }
}

const fn profiled(profiler: Profiler) -> Setup {
    let is_ours = matches!(profiler, Profiler::Ours(_));
    Setup { malloc: if is_ours { Some("pymalloc") } else { None }, is_ours, profiler }
}

/// Rows of our table against the plain interpreter.
pub(crate) const ROWS: Comparison = Comparison {
    setups: &[setup(None, false), setup(Some("pymalloc"), true), setup(Some("mimalloc"), true)],
    columns: &[("pymalloc", 1, 0), ("mimalloc", 2, 0)],
};

/// The debug hooks, CPython's and ours, each against the same allocators without them.
pub(crate) const HOOKS: Comparison = Comparison {
    setups: &[
        setup(Some("pymalloc"), false),
        setup(Some("pymalloc_debug"), false),
        setup(Some("pymalloc"), true),
        setup(Some("pymalloc_debug"), true),
    ],
    columns: &[("CPython's hooks", 1, 0), ("ours", 3, 2)],
};

/// Profilers of memory, each against the same allocators without it.
pub(crate) const PROFILERS: Comparison = Comparison {
    setups: &[
        setup(None, false),
        setup(Some("pymalloc"), true),
        profiled(Profiler::Ours("")),
        profiled(Profiler::Ours(",frames=5")),
        profiled(Profiler::Ours(",sample=512K")),
        profiled(Profiler::Tracemalloc("tracemalloc=1")),
        profiled(Profiler::Tracemalloc("tracemalloc=5")),
        profiled(Profiler::Tracemalloc("tracemalloc=25")),
        profiled(Profiler::Memray),
    ],
    columns: &[
        ("exact", 2, 1),
        ("exact, 5 frames", 3, 1),
        ("one in 512 KiB", 4, 1),
        ("tracemalloc", 5, 0),
        ("tracemalloc, 5 frames", 6, 0),
        ("tracemalloc, 25 frames", 7, 0),
        ("memray", 8, 0),
    ],
};

/// What a run of the programs found.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Programs {
    /// Where and when.
    pub(crate) origin: Origin,
    /// The interpreter.
    pub(crate) interpreter: String,
    /// Runs of each program and setup.
    pub(crate) rounds: usize,
    /// What was compared.
    pub(crate) columns: Vec<Column>,
    /// One entry a program.
    pub(crate) results: Vec<ProgramResult>,
}

/// One program's runs.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ProgramResult {
    /// The program's name.
    pub(crate) program: String,
    /// One list a setup.
    runs: Vec<Vec<Usage>>,
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
    /// By how many bytes the peak resident set of a column's setup is above that of its baseline.
    pub(crate) fn added(&self, column: &Column) -> f64 {
        let peak = |setup: usize| {
            median(&self.runs[setup].iter().map(|run| run.peak_bytes as f64).collect::<Vec<_>>())
        };
        peak(column.row) - peak(column.baseline)
    }

    /// Processor time and peak resident set of a column's setup, relative to those of its baseline.
    pub(crate) fn ratios(&self, column: &Column) -> [Ratio; 2] {
        let ratio = |of: fn(&Usage) -> f64| {
            let values = |setup: usize| self.runs[setup].iter().map(of).collect::<Vec<f64>>();
            Ratio::of(&values(column.row), &values(column.baseline))
        };
        [ratio(|usage| usage.cpu_seconds), ratio(|usage| usage.peak_bytes as f64)]
    }
}

impl Programs {
    /// Geometric means of a column's processor times and peaks.
    pub(crate) fn means(&self, column: &Column) -> [Ratio; 2] {
        let ratios: Vec<[Ratio; 2]> =
            self.results.iter().map(|result| result.ratios(column)).collect();
        [0, 1].map(|of| Ratio::geomean(&ratios.iter().map(|ratios| ratios[of]).collect::<Vec<_>>()))
    }
}

/// How the programs are run.
pub(crate) struct Plan<'a> {
    /// What runs them.
    pub(crate) interpreter: &'a Path,
    /// What is preloaded.
    pub(crate) library: &'a Path,
    /// Folders of programs; those of the repository if there is none.
    pub(crate) folders: &'a [PathBuf],
    /// Only programs whose names contain one of these words, if there are words.
    pub(crate) only: &'a [String],
    /// Runs of each program and setup, in turn.
    pub(crate) rounds: usize,
    /// Runs of each program under tracemalloc and memray, at most `rounds`: they take several times as long.
    pub(crate) guest_rounds: usize,
    /// The folder in which memray is, if it is there.
    pub(crate) memray: Option<PathBuf>,
}

impl Plan<'_> {
    /// Runs every program that the plain interpreter runs in every setup of `comparison`; all must print the same.
    pub(crate) fn run(&self, comparison: &Comparison, scratch: &Path) -> Result<Programs> {
        ensure!(
            self.library.exists(),
            "{} is missing: build pymem-preload",
            self.library.display()
        );
        let mut results = Vec::new();
        for program in self.programs()? {
            let name = program.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            match self.runs(comparison, &program, &name, scratch)? {
                Some(runs) => results.push(ProgramResult { program: name, runs }),
                None => eprintln!("left out, as the plain interpreter does not run it: {name}"),
            }
        }
        ensure!(!results.is_empty(), "no program's name contains one of {:?}", self.only);
        let column = |&(title, row, baseline): &(&str, _, _)| Column {
            title: title.to_owned(),
            row,
            baseline,
        };
        Ok(Programs {
            origin: origin::here(),
            interpreter: version(self.interpreter)?,
            rounds: self.rounds,
            columns: comparison
                .columns
                .iter()
                .filter(|(_, row, _)| self.has(&comparison.setups[*row]))
                .map(column)
                .collect(),
            results,
        })
    }

    /// Whether what watches the memory in `setup` could be had.
    fn has(&self, setup: &Setup) -> bool {
        setup.profiler != Profiler::Memray || self.memray.is_some()
    }

    /// What `program` used in every setup; `None` if the plain interpreter, which is the first, does not run it.
    fn runs(
        &self,
        comparison: &Comparison,
        program: &Path,
        name: &str,
        scratch: &Path,
    ) -> Result<Option<Vec<Vec<Usage>>>> {
        let mut runs: Vec<Vec<Usage>> = vec![Vec::new(); comparison.setups.len()];
        let mut expected = None;
        let bar = progress(name, self.rounds);
        for round in 0..self.rounds {
            for (at, setup) in comparison.setups.iter().enumerate() {
                if !self.has(setup) || setup.profiler.is_guest() && round >= self.guest_rounds {
                    continue;
                }
                let (usage, output) = match self.process(setup, program, scratch) {
                    Err(_) if expected.is_none() => return Ok(None),
                    run => run.with_context(|| format!("{} failed", program.display()))?,
                };
                ensure!(
                    *expected.get_or_insert_with(|| output.clone()) == output,
                    "{} printed something else under {}",
                    program.display(),
                    setup.name()
                );
                runs[at].push(usage);
            }
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok(Some(runs))
    }

    /// What one run used, and what it printed by way of a file in `scratch`.
    fn process(&self, setup: &Setup, program: &Path, scratch: &Path) -> Result<(Usage, Vec<u8>)> {
        let (output, profile) = (scratch.join("output"), scratch.join("profile.json"));
        let mut command = self.command(setup);
        match setup.profiler {
            Profiler::None => {}
            Profiler::Ours(options) => {
                let mut request = profile.into_os_string();
                request.push(options);
                command.env("PYMEM_PROFILE", request);
            }
            Profiler::Tracemalloc(option) => {
                command.args(["-X", option]);
            }
            Profiler::Memray => {
                command.envs(self.memray.as_ref().map(|folder| ("PYTHONPATH", folder)));
                command.args(["-m", "memray", "run", "--trace-python-allocators", "--quiet"]);
                command.args(["--force", "--output"]).arg(profile);
            }
        }
        command.arg(program).stdout(File::create(&output)?);
        Ok((usage(&mut command)?, std::fs::read(output)?))
    }

    /// The interpreter in `setup`, without arguments.
    pub(crate) fn command(&self, setup: &Setup) -> Command {
        let mut command = Command::new(self.interpreter);
        command.env("PYTHONHASHSEED", "0").env_remove("PYTHONMALLOC").stdin(Stdio::null());
        command.envs(setup.malloc.map(|name| ("PYTHONMALLOC", name)));
        command.envs(setup.is_ours.then_some(("LD_PRELOAD", self.library)));
        command
    }

    fn programs(&self) -> Result<Vec<PathBuf>> {
        let own = [PathBuf::from(FOLDER)];
        let folders = if self.folders.is_empty() { &own } else { self.folders };
        let mut programs = Vec::new();
        for folder in folders {
            let entries = std::fs::read_dir(folder)
                .with_context(|| format!("no programs in {}", folder.display()))?;
            for entry in entries {
                let path = entry?.path();
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let is_wanted = self.only.is_empty()
                    || self.only.iter().any(|word| name.contains(word.as_str()));
                if name.ends_with(".py") && is_wanted {
                    programs.push(path);
                }
            }
        }
        programs.sort();
        Ok(programs)
    }
}

/// `CPython 3.13.0 (python3.13)`.
pub(crate) fn version(interpreter: &Path) -> Result<String> {
    let output = Command::new(interpreter).arg("-V").output()?;
    let text = String::from_utf8_lossy(&output.stdout).replace("Python", "CPython");
    // The path says where it is on this machine alone.
    let name = interpreter.file_name().unwrap_or_default().display();
    Ok(format!("{} ({name})", text.trim()))
}

/// `3.13`.
pub(crate) fn minor_version(interpreter: &Path) -> Result<String> {
    let version = "import sys; print('%d.%d' % sys.version_info[:2], end='')";
    let output = Command::new(interpreter).args(["-c", version]).output()?;
    ensure!(output.status.success(), "{} cannot be run", interpreter.display());
    Ok(String::from_utf8(output.stdout)?)
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
