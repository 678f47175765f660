//! Owns how a test runs a program: with the library preloaded or without, in an environment of its own.

use std::cmp::Reverse;
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use crate::interpreters::Interpreter;

/// The library that `PYMEM_TEST_LIBRARY` names, or else as cargo built it beside this test.
pub(crate) fn library() -> PathBuf {
    if let Some(path) = env::var_os("PYMEM_TEST_LIBRARY") {
        return PathBuf::from(path);
    }
    let test = env::current_exe().expect("the test knows its own path");
    let folder = test.parent().expect("the test is in a folder");
    let library = folder.join("libpymem_preload.so");
    assert!(library.is_file(), "{} is missing; cargo builds it with the test", library.display());
    library
}

/// The interpreters of this machine, oldest first, one of each version and build unless everything is to be tried; says so when
/// there is none.
pub(crate) fn interpreters() -> &'static [Interpreter] {
    static FOUND: OnceLock<Vec<Interpreter>> = OnceLock::new();
    FOUND.get_or_init(|| {
        let mut found = Interpreter::installed();
        if !tries_all() {
            // Of several the one with `libpython` in its program, as most distributions build it: that is the largest.
            let bytes = |path: &Path| fs::metadata(path).map_or(0, |file| file.len());
            found.sort_by_cached_key(|python| (python.kind(), Reverse(bytes(&python.path))));
            found.dedup_by_key(|python| python.kind());
        }
        if found.is_empty() {
            eprintln!(
                "skipped: no CPython 3.9 or newer that exports PyMem_SetAllocator is installed"
            );
        }
        found
    })
}

/// Those with the GIL.
pub(crate) fn with_gil() -> impl Iterator<Item = &'static Interpreter> {
    interpreters().iter().filter(|python| !python.free_threaded)
}

/// Whether everything is to be tried, as by `cargo xtask ci test-all`, and not only what may differ from the rest.
pub(crate) fn tries_all() -> bool {
    env::var_os("PYMEM_TEST_ALL").is_some()
}

/// The oldest, 3.13, and the newest of each build: for programs that ask nothing of what versions have in different places, and for
/// those that `cargo xtask hosts` runs on each version.
pub(crate) fn few() -> impl Iterator<Item = &'static Interpreter> {
    let oldest = interpreters().first().map(|python| python.minor);
    interpreters().iter().filter(move |python| {
        tries_all() || Some(python.minor) == oldest || python.minor == 13 || is_newest(python)
    })
}

/// Those of them with the GIL.
pub(crate) fn few_with_gil() -> impl Iterator<Item = &'static Interpreter> {
    few().filter(|python| !python.free_threaded)
}

/// Whether no interpreter of this build is newer.
pub(crate) fn is_newest(python: &Interpreter) -> bool {
    let newest = interpreters().iter().rfind(|other| other.free_threaded == python.free_threaded);
    newest.is_some_and(|newest| newest.path == python.path)
}

/// Those without; says so when there is none.
pub(crate) fn free_threaded() -> Vec<&'static Interpreter> {
    let found: Vec<_> = interpreters().iter().filter(|python| python.free_threaded).collect();
    if found.is_empty() {
        eprintln!("skipped: no free-threaded interpreter is installed");
    }
    found
}

/// A program without any of the variables that the library or the interpreter's allocators read.
pub(crate) fn plain(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for name in [
        "LD_PRELOAD",
        "PYTHONMALLOC",
        "PYTHONDEVMODE",
        "PYTHONMALLOCSTATS",
        "PYTHONTRACEMALLOC",
        "PYMEM_DEBUG",
        "PYMEM_REPORT",
        "PYMEM_STATS",
        "PYMEM_TRACE",
        "PYMEM_TRACE_LIMIT",
        "PYMEM_LIMIT",
        "PYMEM_PROFILE",
        "PYMEM_HEAP_MAP",
    ] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

/// The same with the library preloaded.
pub(crate) fn preloaded(program: impl AsRef<OsStr>) -> Command {
    let mut command = plain(program);
    command.env("LD_PRELOAD", library());
    command
}

/// An interpreter under the preload, with `PYTHONMALLOC` set to `row`.
pub(crate) fn python(path: &Path, row: &str) -> Command {
    let mut command = preloaded(path);
    command.env("PYTHONMALLOC", row);
    command
}

/// What the C compiler makes of `text` with these `options`, in `folder`; `None` without one.
pub(crate) fn compiled(folder: &Path, text: &str, options: &[&str]) -> Option<PathBuf> {
    if run(plain("sh").args(["-c", "command -v cc"])).status != Some(0) {
        eprintln!("skipped: there is no C compiler");
        return None;
    }
    let (source, made) = (folder.join("source.c"), folder.join("made"));
    std::fs::write(&source, text).expect("a file of the test");
    succeed(plain("cc").args(options).arg("-o").arg(&made).arg(&source).arg("-ldl"));
    Some(made)
}

/// What a program did, for comparison and for messages.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) status: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs a program to its end.
pub(crate) fn run(command: &mut Command) -> Outcome {
    use std::os::unix::process::ExitStatusExt as _;

    let Output { status, stdout, stderr } = command.output().expect("the program starts");
    Outcome {
        status: status.code(),
        signal: status.signal(),
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
    }
}

/// Runs a program that must succeed and write nothing to stderr; returns its stdout.
pub(crate) fn succeed(command: &mut Command) -> String {
    let outcome = run(command);
    assert_eq!(
        (outcome.status, outcome.stderr.as_str()),
        (Some(0), ""),
        "{command:?}: {outcome:?}"
    );
    outcome.stdout
}
