//! Owns the order of work: which traces, which rows, which processes; one figure a row and trace comes out.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use pymem_bench::job::{Answer, JOB_VARIABLE, Job, Measured, Mode};
use pymem_bench::rows::ROWS;
use pymem_bench::trace::{self, Prepared};

/// Environment variable with trace files or folders of them, separated as in `PATH`.
pub(crate) const TRACES_VARIABLE: &str = "PYMEM_TRACES";

/// The trace files that the arguments or the environment name, sorted by name.
pub(crate) fn find_traces(arguments: &[PathBuf], only: &[String]) -> Result<Vec<PathBuf>> {
    let mut named: Vec<PathBuf> = arguments.to_vec();
    if named.is_empty() {
        named =
            std::env::split_paths(&std::env::var_os(TRACES_VARIABLE).unwrap_or_default()).collect();
    }
    let mut files = Vec::new();
    for path in named.into_iter().filter(|path| path != Path::new("")) {
        if !path.is_dir() {
            files.push(path);
            continue;
        }
        for entry in std::fs::read_dir(&path)? {
            let path = entry?.path();
            let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
            if name.ends_with(".trc") || name.ends_with(".trc.zst") {
                files.push(path);
            }
        }
    }
    files.retain(|path| {
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        only.is_empty() || only.iter().any(|word| name.contains(word.as_str()))
    });
    files.sort();
    ensure!(!files.is_empty(), "no traces: name files or folders by --trace or {TRACES_VARIABLE}");
    Ok(files)
}

/// One trace's figures.
#[derive(Debug)]
pub(crate) struct TraceResult {
    /// The trace's name.
    pub(crate) trace: String,
    /// Operations of a pass.
    pub(crate) operations: usize,
    /// Warm passes, one entry a row.
    pub(crate) warm: Vec<Measured>,
    /// Cold passes: a row's processes together, medians of the memory figures.
    pub(crate) cold: Vec<Measured>,
}

/// Starts workers inside the interpreter.
#[derive(Debug)]
pub(crate) struct Driver {
    python: PathBuf,
    library: PathBuf,
    folder: tempfile::TempDir,
}

impl Driver {
    /// A driver that preloads the library beside this program into `python`.
    pub(crate) fn new(python: &Path) -> Result<Self> {
        let program = std::env::current_exe()?;
        let beside = program.parent().context("the program has no folder")?;
        let library = [beside.to_owned(), beside.join("deps")]
            .iter()
            .map(|folder| folder.join("libpymem_bench.so"))
            .find(|path| path.exists())
            .context("libpymem_bench.so is not beside the program: build the whole package")?;
        Ok(Self { python: python.to_owned(), library, folder: tempfile::tempdir()? })
    }

    /// The asked-for rows, or all, that a worker can open; `cpython` first.
    pub(crate) fn rows(&self, asked: &[String]) -> Result<Vec<String>> {
        for name in asked {
            if !ROWS.iter().any(|row| row.name == name) {
                let known: Vec<_> = ROWS.iter().map(|row| row.name).collect();
                bail!("no allocator is called {name}; known are {}", known.join(", "));
            }
        }
        let wanted = ROWS.iter().map(|row| row.name.to_owned());
        let wanted: Vec<String> = wanted
            .filter(|name| {
                asked.is_empty() || name == "cpython" || name == "null" || asked.contains(name)
            })
            .collect();
        let nothing = Prepared {
            name: String::new(),
            file: PathBuf::new(),
            operations: 0,
            leftovers: 0,
            slots: 0,
        };
        let answer = self.work(&nothing, Mode::Probe(wanted.clone()))?;
        let found: Vec<String> = answer.rows.into_iter().map(|row| row.row).collect();
        let missing: Vec<String> =
            wanted.into_iter().filter(|name| !found.contains(name)).collect();
        if !missing.is_empty() {
            eprintln!("not available here: {}", missing.join(", "));
        }
        ensure!(
            found.first().is_some_and(|name| name == "cpython"),
            "{} lends no allocators",
            self.python.display()
        );
        eprintln!(
            "baseline: CPython {} ({})",
            answer.python.unwrap_or_default(),
            self.python.display()
        );
        Ok(found)
    }

    /// Measures all rows on one trace.
    pub(crate) fn measure(
        &self,
        path: &Path,
        rows: &[String],
        rounds: usize,
        passes: usize,
        colds: usize,
    ) -> Result<TraceResult> {
        let trace = trace::prepare(path, self.folder.path())?;
        eprintln!("{}: {} operations", trace.name, trace.operations);
        let warm = self.work(&trace, Mode::Warm { rows: rows.to_vec(), rounds, passes })?.rows;
        let mut samples: Vec<Vec<Measured>> = vec![Vec::new(); rows.len()];
        for _ in 0..colds {
            for (row, samples) in rows.iter().zip(&mut samples) {
                samples.append(&mut self.work(&trace, Mode::Cold(row.clone()))?.rows);
            }
        }
        std::fs::remove_file(&trace.file)?;
        let cold = rows.iter().zip(samples).map(|(row, samples)| together(row, &samples)).collect();
        Ok(TraceResult { trace: trace.name, operations: trace.operations, warm, cold })
    }

    fn work(&self, trace: &Prepared, mode: Mode) -> Result<Answer> {
        let path = self.folder.path().join("job.json");
        let answer = self.folder.path().join("answer.json");
        let job = Job { mode, trace: trace.clone(), answer };
        std::fs::write(&path, serde_json::to_vec(&job)?)?;
        let status = Command::new(&self.python)
            .env(JOB_VARIABLE, &path)
            .env("LD_PRELOAD", &self.library)
            .env_remove("PYTHONMALLOC")
            .args(["-c", "raise SystemExit('the benchmark library did not run: is this CPython?')"])
            .status()
            .with_context(|| format!("cannot start {}", self.python.display()))?;
        ensure!(status.success(), "a worker ended with {status} in {:?}", job.mode);
        Ok(serde_json::from_slice(&std::fs::read(&job.answer)?)?)
    }
}

/// All samples of a row's cold processes: every time, and the medians of the memory figures.
fn together(row: &str, samples: &[Measured]) -> Measured {
    let median = |of: fn(&Measured) -> i64| {
        let mut values: Vec<i64> = samples.iter().map(of).collect();
        values.sort_unstable();
        values.get(values.len() / 2).copied().unwrap_or(0)
    };
    Measured {
        row: row.to_owned(),
        nanoseconds: samples.iter().flat_map(|sample| sample.nanoseconds.clone()).collect(),
        end_bytes: median(|sample| sample.end_bytes),
        peak_bytes: median(|sample| sample.peak_bytes),
        freed_bytes: median(|sample| sample.freed_bytes),
    }
}
