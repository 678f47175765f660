//! Owns the processes: a driver hands a task to a fresh worker inside the interpreter and waits for its answer.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use pymem_bench::job::{Answer, JOB_VARIABLE, Job, Measured, Task};
use pymem_bench::rows::{BASELINE, ROWS};

/// Rows that are measured whatever was asked for: what ratios are relative to, and the cost of replaying.
const ALWAYS: [&str; 2] = [BASELINE, "null"];

/// Starts workers inside an interpreter.
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
        let library = beside.join("libpymem_bench.so");
        ensure!(library.exists(), "{} is missing: build the whole package", library.display());
        Ok(Self { python: python.to_owned(), library, folder: tempfile::tempdir()? })
    }

    /// A folder for files that workers read.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The asked-for rows, or all, that a worker can open, the baseline first; and the interpreter's version.
    pub(crate) fn rows(&self, asked: &[String]) -> Result<(Vec<String>, String)> {
        let known: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
        if let Some(name) = asked.iter().find(|name| !known.contains(&name.as_str())) {
            bail!("no allocator is called {name}; known are {}", known.join(", "));
        }
        let wanted = known.iter().map(|name| (*name).to_owned());
        let wanted: Vec<String> = wanted
            .filter(|name| {
                asked.is_empty() || ALWAYS.contains(&name.as_str()) || asked.contains(name)
            })
            .collect();
        let answer = self.work(Task::Probe(wanted.clone()))?;
        let found: Vec<String> = answer.rows.into_iter().map(|row| row.row).collect();
        for name in wanted.iter().filter(|name| !found.contains(name)) {
            eprintln!("not available here: {name}");
        }
        ensure!(
            found.first().is_some_and(|name| name == BASELINE),
            "{} lends no allocators; name a CPython by --interpreter",
            self.python.display()
        );
        Ok((found, answer.python.unwrap_or_default()))
    }

    /// The only row of the answer to `task`.
    pub(crate) fn one(&self, task: Task) -> Result<Measured> {
        self.work(task)?.rows.pop().context("a worker measured nothing")
    }

    /// The answer to `task` of a fresh worker.
    pub(crate) fn work(&self, task: Task) -> Result<Answer> {
        let answer = self.folder.path().join("answer.json");
        let job = Job { task, answer };
        let path = self.write(&job)?;
        let status = Command::new(&self.python)
            .env(JOB_VARIABLE, &path)
            .env("LD_PRELOAD", &self.library)
            .env_remove("PYTHONMALLOC")
            .args(["-c", "raise SystemExit('the benchmark library did not run: is this CPython?')"])
            .status()
            .with_context(|| format!("cannot start {}", self.python.display()))?;
        ensure!(status.success(), "a worker ended with {status} in {:?}", job.task);
        Ok(serde_json::from_slice(&std::fs::read(&job.answer)?)?)
    }

    /// Writes a job down; returns the file.
    pub(crate) fn write(&self, job: &Job) -> Result<PathBuf> {
        let path = self.folder.path().join("job.json");
        std::fs::write(&path, serde_json::to_vec(job)?)?;
        Ok(path)
    }
}
