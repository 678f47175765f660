//! Owns `cargo xtask python`: runs an installed interpreter under the preload.

use std::env;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

// A link to the file of the preload's tests, so that both search alike and each packs it.
#[path = "python/interpreters.rs"]
mod interpreters;

pub(crate) use interpreters::Interpreter;

use crate::python_trace;
use crate::workspace;

/// The exit status when there is no interpreter that can be served.
const NO_INTERPRETER: u8 = 2;

/// Run an unmodified Python on the allocators of this workspace.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The interpreter; without it, python3 on PATH.
    #[arg(long, value_name = "PATH")]
    python: Option<PathBuf>,
    /// The configuration, a PYTHONMALLOC name; without it, the variable decides.
    #[arg(long, value_name = "NAME")]
    malloc: Option<String>,
    /// Checks beyond CPython's in the debug configurations, as `quarantine=16M,serial`.
    #[arg(long, value_name = "OPTIONS")]
    debug: Option<String>,
    /// Print at exit what was served.
    #[arg(long)]
    stats: bool,
    /// Write every call of the three domains into this file, as a trace that `cargo xtask bench --trace` replays.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Stop recording when the log of calls, 16 bytes each, has this size, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 4096, requires = "trace")]
    trace_limit: u64,
    /// Write who holds the memory into this file, drawn as its name says: app.html, app.json. Options follow after commas:
    /// sample=512K, frames=32.
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
    /// Draw the heap into this SVG file when the program is over, and whenever the process gets SIGUSR1.
    #[arg(long, value_name = "FILE")]
    heap_map: Option<PathBuf>,
    /// Arguments of the interpreter.
    #[arg(last = true, value_name = "ARGS")]
    arguments: Vec<String>,
}

/// Builds the library and replaces this process by the interpreter, with the library preloaded.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let program = args.python.unwrap_or_else(|| PathBuf::from("python3"));
    let interpreter = match Interpreter::probe(&program) {
        Ok(interpreter) => interpreter,
        Err(reason) => {
            eprintln!("error: {reason}.");
            return Ok(ExitCode::from(NO_INTERPRETER));
        }
    };
    let mut command = preloaded(&interpreter.path, &library()?);
    if let Some(name) = args.malloc {
        command.env("PYTHONMALLOC", name);
    }
    if let Some(options) = args.debug {
        command.env("PYMEM_DEBUG", options);
    }
    if args.stats {
        command.env("PYMEM_STATS", "1");
    }
    if let Some(request) = args.profile {
        command.env("PYMEM_PROFILE", request);
    }
    if let Some(path) = args.heap_map {
        command.env("PYMEM_HEAP_MAP", path);
    }
    command.args(args.arguments);
    if let Some(trace) = args.trace {
        return python_trace::run(command, &trace, args.trace_limit);
    }
    // The exit status or signal of the interpreter is then that of this process.
    Err(command.exec()).with_context(|| format!("{} does not start", interpreter.path.display()))
}

/// A program with the library preloaded, without the library folders that cargo adds for its own programs.
pub(crate) fn preloaded(program: &Path, library: &Path) -> Command {
    let mut command = Command::new(program);
    let mut libraries = library.as_os_str().to_owned();
    if let Some(others) = env::var_os("LD_PRELOAD").filter(|others| !others.is_empty()) {
        libraries.push(":");
        libraries.push(others);
    }
    command.env("LD_PRELOAD", libraries);
    command.env_remove("LD_LIBRARY_PATH");
    if let Some(path) = env::var_os("LD_LIBRARY_PATH") {
        let own = env::split_paths(&path).filter(|folder| !folder.starts_with(workspace::root()));
        let own: Vec<PathBuf> = own.filter(|folder| !is_toolchain(folder)).collect();
        if let Some(path) = env::join_paths(own).ok().filter(|path| !path.is_empty()) {
            command.env("LD_LIBRARY_PATH", path);
        }
    }
    command
}

/// Did cargo add the folder to the search path, for the toolchain's libraries or for those of the build?
fn is_toolchain(folder: &Path) -> bool {
    let toolchain = env::var_os("RUSTUP_HOME").map(PathBuf::from);
    let toolchain = toolchain.or_else(|| Some(env::home_dir()?.join(".rustup")));
    let target = env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    [toolchain, target].into_iter().flatten().any(|root| folder.starts_with(root))
}

/// Builds the library as it ships; returns its path.
pub(crate) fn library() -> Result<PathBuf> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.arg("build");
    library_of(build)
}

/// Builds the library as it ships by the caller's `cargo build`, which may have options; returns its path.
pub(crate) fn library_of(mut build: Command) -> Result<PathBuf> {
    build.current_dir(workspace::root());
    build.args(["--quiet", "--profile", "preload", "--package", "pymem-preload", "--lib"]);
    // Cargo's messages name the library's path in any target folder.
    build.args(["--message-format", "json-render-diagnostics"]);
    let output =
        build.stderr(std::process::Stdio::inherit()).output().context("cargo does not start")?;
    if !output.status.success() {
        bail!("the library does not build");
    }
    let text = String::from_utf8(output.stdout).context("cargo's messages")?;
    let files = text.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        (message["target"]["name"] == "pymem_preload").then(|| message["filenames"].clone())
    });
    let files: Vec<serde_json::Value> = files.collect();
    let names = files
        .iter()
        .filter_map(|names| names.as_array())
        .flatten()
        .filter_map(|name| name.as_str());
    names
        .map(PathBuf::from)
        .find(|name| name.extension().is_some_and(|extension| extension == "so"))
        .context("cargo names no library among what it built")
}
