//! Owns `cargo xtask python`: builds the library, and has the package's command run an interpreter on it. Leaves what that
//! takes, and what each option means, to `python/`.

use std::env;
use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

// A link to the file of the preload's tests, so that both search alike and each packs it.
#[path = "python/interpreters.rs"]
mod interpreters;

pub(crate) use interpreters::Interpreter;

use crate::workspace;

/// The exit status when there is no interpreter that can be served.
const NO_INTERPRETER: u8 = 2;

/// The package's command, from the folder that is the first argument.
const COMMAND: &str = "import sys; sys.path[0] = sys.argv.pop(1); \
                       from pymem_domains._command import main; sys.exit(main(sys.argv[1:]))";

/// Run an unmodified Python on the allocators of this workspace: `pymem-domains run`, from these sources.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The interpreter; without it, python3 on PATH.
    #[arg(long, value_name = "PATH")]
    python: Option<PathBuf>,
    /// The options of `pymem-domains run`, which `pymem-domains run --help` lists.
    #[arg(allow_hyphen_values = true, value_name = "OPTIONS")]
    options: Vec<OsString>,
    /// Arguments of the interpreter.
    #[arg(last = true, value_name = "ARGS")]
    arguments: Vec<OsString>,
}

/// Builds the library and replaces this process by the package's command, which becomes the interpreter.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let program = args.python.unwrap_or_else(|| PathBuf::from("python3"));
    let interpreter = match Interpreter::probe(&program) {
        Ok(interpreter) => interpreter,
        Err(reason) => {
            eprintln!("error: {reason}.");
            return Ok(ExitCode::from(NO_INTERPRETER));
        }
    };
    let mut command = without_cargo(&interpreter.path);
    command.env("PYMEM_LIBRARY", library()?);
    command.args(["-B", "-c", COMMAND]).arg(workspace::root().join("python/src")).arg("run");
    command.args(args.options).arg("--").args(args.arguments);
    // The exit status or signal of the interpreter is then that of this process.
    Err(command.exec()).with_context(|| format!("{} does not start", interpreter.path.display()))
}

/// A program with the library preloaded, without the library folders that cargo adds for its own programs.
pub(crate) fn preloaded(program: &Path, library: &Path) -> Command {
    let mut command = without_cargo(program);
    let mut libraries = library.as_os_str().to_owned();
    if let Some(others) = env::var_os("LD_PRELOAD").filter(|others| !others.is_empty()) {
        libraries.push(":");
        libraries.push(others);
    }
    command.env("LD_PRELOAD", libraries);
    command
}

/// A program without the library folders that cargo adds for its own programs.
fn without_cargo(program: &Path) -> Command {
    let mut command = Command::new(program);
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

/// The library that the wheel of this process ships, once that is built.
pub(crate) static SHIPPED: OnceLock<PathBuf> = OnceLock::new();

/// The variable that names the library to a child, here as in `python/hatch_build.py`.
pub(crate) const BUILT: &str = "PYMEM_BUILD_LIBRARY";

/// Builds the library as it ships, unless it is built already; returns its path.
pub(crate) fn library() -> Result<PathBuf> {
    if let Some(built) = SHIPPED.get().cloned().or_else(|| env::var_os(BUILT).map(PathBuf::from)) {
        return Ok(built);
    }
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.arg("rustc");
    library_of(build)
}

/// Builds the library as it ships by the caller's `cargo rustc`, which may have options; returns its path.
pub(crate) fn library_of(mut build: Command) -> Result<PathBuf> {
    build.current_dir(workspace::root());
    build.args(["--quiet", "--profile", "preload", "--package", "pymem-preload", "--lib"]);
    // Together with the `rlib` that the manifest names beside it, cargo would leave its link-time optimisation out.
    build.args(["--crate-type", "cdylib"]);
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
