//! Owns `cargo xtask wheel`: the Python distribution, built as it ships, and the check that people can use it who have a Python
//! and nothing else. Leaves what is packed, and how the library is built for it, to `python/hatch_build.py`.

mod environment;
mod suites;

use std::env::consts::ARCH;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail, ensure};
use xshell::{Shell, cmd};

use environment::Environment;

use crate::python::{self, Interpreter};
use crate::workspace;

/// The version of glibc to build for: the oldest that Rust's standard library runs on.
const GLIBC: &str = "2.17";
/// The newest glibc that the library may need where it cannot be built for [`GLIBC`]: what people have who have not upgraded for years.
const NEWEST_GLIBC: (u32, u32) = (2, 28);
/// What a wheel may weigh.
const MAX_BYTES: u64 = 1_500_000;

/// What is said of an sdist where there is no Rust.
const NO_RUST: &str = "there is no cargo on PATH; install Rust 1.85 or newer, or take a wheel";

/// A program that is served, and says so.
const SERVED: &str = "import pymem_domains as p, sys; s = p.stats(); \
                      print(s.row, s.resident_bytes > 0, all(d.backend for d in s.domains))";

/// Whether the process has the unwinder's library, which alone is as large as all that the wheel's has in memory.
const HAS_UNWINDER: &str = "with open('/proc/self/maps') as maps: print('libgcc_s' in maps.read())";

/// A program whose profile names who holds its memory.
const PROFILED: &str = "def hoard(): return [bytes(1000) for _ in range(1000)]\nkept = hoard()";

/// Build the Python wheel.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The folder that gets the wheel and the sdist.
    #[arg(long, value_name = "DIR", default_value = "target/wheel/dist")]
    out: PathBuf,
    /// Check the wheel, in an empty environment of each interpreter that is there, and run the package's tests.
    #[arg(long)]
    check: bool,
    /// Run the test suites of three published packages with C extensions, with and without the checks; it takes minutes.
    #[arg(long)]
    suites: bool,
}

/// Builds the wheel and the sdist, and checks them where that is asked for.
///
/// # Errors
///
/// A build that fails, or the first check.
pub(crate) fn run(args: &Args) -> Result<()> {
    let shell = workspace::shell()?;
    let tools = Environment::new(&shell, Path::new("python3"), "tools")?;
    tools.install_from(&shell, "requirements-build.txt")?;
    let wheel = build(&shell, &tools, &args.out)?;
    println!("{}: {} bytes", wheel.display(), fs::metadata(&wheel)?.len());
    if args.check {
        check(&shell, &tools, &wheel)?;
    }
    if args.suites { suites::run(&shell, &wheel) } else { Ok(()) }
}

/// The step of `cargo xtask ci`.
///
/// # Errors
///
/// As [`run`].
pub(crate) fn step(shell: &Shell) -> Result<()> {
    if cmd!(shell, "python3 -c 'import venv, ensurepip'").quiet().ignore_stderr().run().is_err() {
        println!("skipped: the wheel needs a python3 with venv; python3-venv in Debian");
        return Ok(());
    }
    run(&Args { out: dist(), check: true, suites: false })
}

/// What the library is built for, without the version of glibc.
fn target() -> String {
    format!("{ARCH}-unknown-linux-gnu")
}

/// Where the wheel of these sources is built.
fn dist() -> PathBuf {
    workspace::target().join("wheel/dist")
}

/// Gives `command` an environment of its own, in which pip finds the wheel of these sources as it finds a published one.
///
/// # Errors
///
/// A build that fails.
pub(crate) fn let_install(command: &mut Command) -> Result<()> {
    static WHEELS: OnceLock<PathBuf> = OnceLock::new();
    let shell = workspace::shell()?;
    if WHEELS.get().is_none() {
        if python::SHIPPED.get().is_none() {
            run(&Args { out: dist(), check: false, suites: false })?;
        }
        // pip takes an installed package of the same version for this one.
        shell.remove_path(workspace::target().join("wheel/documents"))?;
    }
    let wheels = WHEELS.get_or_init(dist);
    let environment = Environment::new(&shell, Path::new("python3"), "documents")?;
    command.env("PATH", environment.path()?);
    command.env("PIP_FIND_LINKS", wheels).env("PIP_DISABLE_PIP_VERSION_CHECK", "1");
    Ok(())
}

/// Builds both distributions into the folder `out`, from the sources as they are; gives the wheel.
fn build(shell: &Shell, tools: &Environment, out: &Path) -> Result<PathBuf> {
    let old: Vec<PathBuf> = shell.read_dir(out).unwrap_or_default();
    for file in old.iter().filter(|file| file.to_string_lossy().contains("pymem_domains-")) {
        shell.remove_path(file)?;
    }
    let _path = shell.push_env("PATH", tools.path()?);
    let _glibc = shell.push_env("PYMEM_BUILD_GLIBC", GLIBC);
    let python = tools.program("python");
    cmd!(shell, "{python} -m build --no-isolation --wheel --sdist --outdir {out} python")
        .ignore_stdout()
        .run()?;
    let library = workspace::target().join(target()).join("preload/libpymem_preload.so");
    let library = fs::canonicalize(library).context("cargo built no library")?;
    // The other checks of this process take what people get.
    python::SHIPPED.get_or_init(|| library);
    let built = shell.read_dir(out)?;
    built
        .into_iter()
        .find(|file| file.extension().is_some_and(|end| end == "whl"))
        .context("no wheel was built")
}

/// Everything that the wheel promises.
fn check(shell: &Shell, tools: &Environment, wheel: &Path) -> Result<()> {
    let bytes = fs::metadata(wheel)?.len();
    ensure!(bytes <= MAX_BYTES, "the wheel has {bytes} bytes; {MAX_BYTES} are the most");
    platform(shell, tools, wheel)?;
    sources(shell, tools, wheel)?;
    let mut count = 0;
    let mut pythons = Interpreter::installed();
    pythons.sort_by_key(Interpreter::kind);
    pythons.dedup_by_key(|python| python.kind());
    for python in pythons {
        in_empty_environment(shell, tools, wheel, &python)
            .with_context(|| format!("the wheel does not work on {python}"))?;
        count += 1;
    }
    ensure!(count > 0, "there is no interpreter that the wheel is for");
    println!("served on {count} interpreters");
    tests(shell, wheel)
}

/// The tag says what the library needs of the C library, and that is old enough.
fn platform(shell: &Shell, tools: &Environment, wheel: &Path) -> Result<()> {
    let auditwheel = tools.program("auditwheel");
    let shown = cmd!(shell, "{auditwheel} show {wheel}").quiet().read()?;
    let tag = shown.split('"').nth(1).context("auditwheel names no tag")?;
    let name = wheel.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    ensure!(name.contains(tag), "{name} needs {tag} by its symbols:\n{shown}");
    let mut numbers = tag.split('_').skip(1).map_while(|part| part.parse().ok());
    let (Some(major), Some(minor)) = (numbers.next(), numbers.next()) else {
        bail!("`{tag}` names no version of glibc");
    };
    let (newest_major, newest_minor) = NEWEST_GLIBC;
    ensure!(
        (major, minor) <= NEWEST_GLIBC,
        "the library needs glibc {major}.{minor}; {newest_major}.{newest_minor} is the newest that it may need"
    );
    println!("needs glibc {major}.{minor}");
    Ok(())
}

/// The sdist is all that pip needs where Rust is; where there is none, one sentence says so.
fn sources(shell: &Shell, tools: &Environment, wheel: &Path) -> Result<()> {
    let folder = wheel.parent().context("a wheel's folder")?;
    let archive = shell
        .read_dir(folder)?
        .into_iter()
        .find(|file| file.extension().is_some_and(|end| end == "gz"));
    let archive = archive.context("no sdist was built")?;
    let environment = Environment::empty(shell, Path::new("python3"), "sources")?;
    let (pip, python) = (tools.program("pip"), environment.program("python"));
    let options = ["--quiet", "--disable-pip-version-check", "--no-cache-dir", "--no-deps"];
    let install = || cmd!(shell, "{pip} --python {python} install {options...} {archive}").quiet();
    let without_rust = install().env("PATH", environment.folder().join("bin"));
    let told = String::from_utf8(without_rust.ignore_status().ignore_stdout().output()?.stderr)?;
    ensure!(told.contains(NO_RUST), "without Rust pip does not say `{NO_RUST}`, but:\n{told}");
    let library = python::SHIPPED.get().context("no library was built")?;
    install().env(python::BUILT, library).run()?;
    served(&environment, "pymalloc")?;
    cargo_finds_all(shell, tools, &archive, &environment.folder().join("unpacked"))?;
    println!("the sdist is whole, and served");
    Ok(())
}

/// Cargo misses nothing in the sdist. That it makes a library of what it finds was seen when the wheel was built.
fn cargo_finds_all(
    shell: &Shell,
    tools: &Environment,
    archive: &Path,
    unpacked: &Path,
) -> Result<()> {
    shell.create_dir(unpacked)?;
    // As of now: packed files are of the year 2020, by which cargo would take what it has seen of an older state for this one.
    let options = ["--touch", "--gzip", "--strip-components=1"];
    cmd!(shell, "tar --extract {options...} --file {archive} --directory {unpacked}")
        .quiet()
        .run()?;
    let cargo = tools.program("cargo-zigbuild");
    let (manifest, folder) = (unpacked.join("workspace/Cargo.toml"), workspace::target());
    let options = ["--quiet", "--locked", "--profile=preload", "--package=pymem-preload"];
    let target = format!("--target={}.{GLIBC}", target());
    let check = cmd!(shell, "{cargo} check {options...} {target} --manifest-path {manifest}");
    // The dependencies are those of the wheel. The crates are not, as they have a wrapper here: without one cargo takes an unpacked
    // crate for that of the same place in the workspace.
    let check = check.env("CARGO_TARGET_DIR", folder).env("RUSTC_WORKSPACE_WRAPPER", "env");
    Ok(check.env("PATH", tools.path()?).quiet().run()?)
}

/// Installs the wheel where nothing else is, without Rust on the path, and has programs served.
fn in_empty_environment(
    shell: &Shell,
    tools: &Environment,
    wheel: &Path,
    interpreter: &Interpreter,
) -> Result<()> {
    let environment = Environment::empty(shell, &interpreter.path, "empty")?;
    let (pip, python) = (tools.program("pip"), environment.program("python"));
    let options = ["--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"];
    cmd!(shell, "{pip} --python {python} install {options...} {wheel}").quiet().run()?;
    let row = if interpreter.free_threaded { "mimalloc_debug" } else { "pymalloc_debug" };
    served(&environment, row)?;
    // The frames of a free-threaded interpreter cannot be read.
    if !interpreter.free_threaded {
        let program = ["run", "--profile", "app.json", "-c", PROFILED];
        let report = ["report", "app.json", "--format", "collapsed", "--out", "app.collapsed"];
        for words in [&program[..], &report] {
            let mut command = bare(&environment, "python");
            command.args(["-m", "pymem_domains"]).args(words);
            expect(command, "")?;
        }
        let stacks = fs::read_to_string(environment.folder().join("app.collapsed"))?;
        ensure!(stacks.contains("hoard"), "the profile does not name `hoard`:\n{stacks}");
    }
    println!("{interpreter}: hi, {row}");
    Ok(())
}

/// A program of the environment, for which there is nothing else: no Rust either.
fn bare(environment: &Environment, program: &str) -> Command {
    let mut command = Command::new(environment.program(program));
    command.env_clear().env("PATH", "/usr/bin:/bin").current_dir(environment.folder());
    command
}

/// Has programs served by `row`, through the module and through the script.
fn served(environment: &Environment, row: &str) -> Result<()> {
    let mut hi = bare(environment, "python");
    hi.args(["-m", "pymem_domains", "run", "-c", "print('hi')"]);
    expect(hi, "hi\n")?;
    // Some interpreters bring it.
    let plain = bare(environment, "python").args(["-c", HAS_UNWINDER]).output()?;
    let mut has_unwinder = bare(environment, "python");
    // Hooks load it, and a debug build has them by default.
    has_unwinder.args(["-m", "pymem_domains", "run", "--malloc", "pymalloc", "-c", HAS_UNWINDER]);
    expect(has_unwinder, &String::from_utf8_lossy(&plain.stdout))?;
    let mut script = bare(environment, "pymem-domains");
    script.args(["run", "--malloc", row, "-c", SERVED]);
    expect(script, &format!("{row} True True\n"))
}

fn expect(mut command: Command, text: &str) -> Result<()> {
    let output = command.output().context("it does not start")?;
    let printed = String::from_utf8_lossy(&output.stdout);
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success() && printed == text && told.is_empty(),
        "{command:?} printed `{printed}` and `{told}`; expected `{text}` alone"
    );
    Ok(())
}

/// The package's own tests, types and style.
fn tests(shell: &Shell, wheel: &Path) -> Result<()> {
    let environment = Environment::new(shell, Path::new("python3"), "tests")?;
    environment.install_from(shell, "requirements-test.txt")?;
    let (pip, python) = (environment.program("pip"), environment.program("python"));
    let options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--force-reinstall"];
    cmd!(shell, "{pip} install {options...} {wheel}").run()?;
    let (ruff, mypy) = (environment.program("ruff"), environment.program("mypy"));
    let _folder = shell.push_dir(workspace::root().join("python"));
    cmd!(shell, "{ruff} check --quiet .").run()?;
    cmd!(shell, "{ruff} format --quiet --check .").run()?;
    cmd!(shell, "{mypy} --no-error-summary").run()?;
    Ok(cmd!(shell, "{python} -m pytest -q").run()?)
}
