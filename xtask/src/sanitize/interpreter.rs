//! Owns the run of an unmodified interpreter on the preload in memcheck: a program without a bug, and with bugs on purpose.
//!
//! The run covers the preload's own code, which AddressSanitizer cannot: the interpreter would have to be built for it.

use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Result, ensure};
use xshell::{Shell, cmd};

use crate::python::{self, Interpreter};

const ROWS: [&str; 4] = ["pymalloc", "mimalloc", "pymalloc_debug", "mimalloc_debug"];
const PROGRAM: &str = "xtask/plants/bugs.py";
/// The bugs of the program.
const BUGS: [&str; 2] = ["overflow", "use after free"];
/// What memcheck says of each.
const WORDS: &str = "Invalid write of size 1";

/// Runs the newest installed interpreter with a GIL, in each row. The build goes to the shell's target folder, whose C flags make
/// mimalloc tell memcheck about its blocks. After a report, memcheck ends with the status `reported`.
pub(super) fn run(shell: &Shell, reported: i32) -> Result<()> {
    let found = Interpreter::installed().into_iter().rfind(|python| !python.free_threaded);
    let Some(python) = found else {
        println!("skipped: no interpreter is installed that the library can be preloaded into");
        return Ok(());
    };
    let build = cmd!(shell, "cargo rustc --features=valgrind");
    let library = python::library_of(Command::from(build))?;
    for row in ROWS {
        println!("memcheck: {python} on {row}");
        let memcheck = Memcheck { shell, python: &python, library: &library, row, reported };
        let clean = memcheck.run("none")?;
        let text = String::from_utf8_lossy(&clean.stderr);
        ensure!(
            clean.status.success(),
            "memcheck found something in {row}: {}\n{text}",
            clean.status
        );
        for bug in BUGS {
            let found = memcheck.run(bug)?;
            let text = String::from_utf8_lossy(&found.stderr);
            // After memcheck's report, the hooks or mimalloc's damaged list may end the process.
            ensure!(
                !found.status.success() && text.contains(WORDS),
                "the {bug} on purpose was not reported as `{WORDS}` in {row}: {}\n{text}",
                found.status
            );
            println!("memcheck: the {bug} on purpose was reported");
        }
    }
    Ok(())
}

/// One row of one interpreter, in memcheck.
struct Memcheck<'a> {
    shell: &'a Shell,
    python: &'a Interpreter,
    library: &'a Path,
    row: &'a str,
    reported: i32,
}

impl Memcheck<'_> {
    /// Runs the program with `bug`. Every file and report that the library can write at exit is switched on.
    fn run(&self, bug: &str) -> Result<Output> {
        let folder = self.shell.create_temp_dir()?;
        let status = format!("--error-exitcode={}", self.reported);
        let program = &self.python.path;
        // The interpreter reads some of its own memory before it writes it. That is not this library's business.
        let run = cmd!(
            self.shell,
            "valgrind -q --undef-value-errors=no {status} {program} -s -S {PROGRAM} {bug}"
        );
        let run = run
            .env("LD_PRELOAD", self.library)
            .env("PYTHONMALLOC", self.row)
            .env("PYTHONMALLOCSTATS", "1")
            .env("PYMEM_STATS", "1")
            .env("PYMEM_TRACE", folder.path().join("trace"))
            .env("PYMEM_HEAP_MAP", folder.path().join("map.svg"));
        Ok(run.quiet().ignore_status().output()?)
    }
}
