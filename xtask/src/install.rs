//! Owns `cargo xtask install`: puts the preload and its C interface below a prefix, and checks that programs can use them there.
//!
//! The installed tree can be moved: the pkg-config file computes the prefix from its own path.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use xshell::{Shell, cmd};

use crate::python::{self, Interpreter};
use crate::workspace;

/// What the example in C prints if it is linked with the library of its header.
const C_OUTPUT: &str = "13 bytes from pymem: Hello, pymem\nno interpreter to set up: -2";

/// Install the preload, its C header and its pkg-config file.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The folder that gets `lib`, `include` and `lib/pkgconfig`.
    #[arg(long, value_name = "DIR")]
    prefix: PathBuf,
}

/// Builds the library as it ships, and installs it with its header and pkg-config file.
///
/// # Errors
///
/// A build that fails, or a folder that cannot be written.
pub(crate) fn run(args: &Args) -> Result<()> {
    install(&args.prefix)
}

fn install(prefix: &Path) -> Result<()> {
    let library = fs::read(python::library()?).context("the built library cannot be read")?;
    let header = fs::read(workspace::root().join("crates/pymem-preload/include/pymem.h"))?;
    put(prefix, "lib/libpymem_preload.so", &library)?;
    put(prefix, "include/pymem.h", &header)?;
    put(prefix, "lib/pkgconfig/pymem.pc", package_config().as_bytes())
}

/// Writes a file under another name and renames it, so that a process that has mapped the old library keeps the old one.
fn put(prefix: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = prefix.join(name);
    let folder = path.parent().unwrap_or(prefix);
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut beside = path.clone().into_os_string();
    beside.push(".tmp");
    let written = fs::write(&beside, bytes).and_then(|()| fs::rename(&beside, &path));
    written.with_context(|| format!("cannot write {}", path.display()))?;
    println!("{}", path.display());
    Ok(())
}

/// The pkg-config file. Programs must see to it themselves that the loader finds the library when they start.
fn package_config() -> String {
    let version = env!("CARGO_PKG_VERSION");
    format!(
        "prefix=${{pcfiledir}}/../..
libdir=${{prefix}}/lib
includedir=${{prefix}}/include

Name: pymem
Description: CPython's memory allocators: what LD_PRELOAD takes, and the C interface for embedders
Version: {version}
Libs: -L${{libdir}} -lpymem_preload
Cflags: -I${{includedir}}
"
    )
}

/// Installs below a folder, moves the folder, and runs a C program and a Python with the library.
///
/// # Errors
///
/// What does not work from there.
pub(crate) fn check(shell: &Shell) -> Result<()> {
    let scratch = shell.create_temp_dir()?;
    let (first, prefix) = (scratch.path().join("first"), scratch.path().join("moved"));
    install(&first)?;
    fs::rename(&first, &prefix)?;
    c_program(shell, &prefix)?;
    interpreter(&prefix.join("lib/libpymem_preload.so"))
}

/// Compiles the example in C with the flags of pkg-config, and runs it.
fn c_program(shell: &Shell, prefix: &Path) -> Result<()> {
    let _pkg_config_path = shell.push_env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig"));
    let found = cmd!(shell, "pkg-config --modversion pymem").quiet().read();
    let found =
        found.context("pkg-config does not find pymem; it is in Debian's package pkg-config")?;
    let version = env!("CARGO_PKG_VERSION");
    ensure!(found == version, "pymem.pc says that this is version {found}; expected {version}");
    let flags = cmd!(shell, "pkg-config --cflags --libs pymem").quiet().read()?;
    let flags: Vec<&str> = flags.split_whitespace().collect();
    let source = workspace::root().join("crates/pymem-preload/examples/records.c");
    let program = prefix.join("records");
    cmd!(shell, "cc -Wall -Wextra -Werror -o {program} {source} {flags...}").run()?;
    let _library_path = shell.push_env("LD_LIBRARY_PATH", prefix.join("lib"));
    let output = cmd!(shell, "{program}").read()?;
    ensure!(output == C_OUTPUT, "the C program printed `{output}`; expected `{C_OUTPUT}`");
    Ok(())
}

/// Runs a Python on the installed library, and checks that the library reports at exit.
fn interpreter(library: &Path) -> Result<()> {
    let python = Interpreter::probe(Path::new("python3")).map_err(anyhow::Error::msg)?;
    let mut command = python::preloaded(&python.path, library);
    command.env_remove("PYTHONMALLOC").env("PYMEM_STATS", "1");
    let output = command.args(["-c", "print(sum([1, 2, 3]))"]).output()?;
    let (text, report) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(
        output.status.success() && text == "6\n" && report.starts_with("pymem: "),
        "{python} on {} printed `{text}` and `{report}`; expected 6 and a report that begins with `pymem: `",
        library.display()
    );
    println!("{python}: {}", report.lines().next().unwrap_or_default());
    Ok(())
}
