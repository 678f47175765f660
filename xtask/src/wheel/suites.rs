//! Owns `cargo xtask wheel --suites`: the test suites of published packages with C extensions, with and without the checks.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use xshell::{Shell, cmd};

use super::environment::Environment;

/// A package whose suite runs.
struct Package {
    name: &'static str,
    version: &'static str,
    tests: Tests,
}

/// Where a package's tests are.
enum Tests {
    /// A module that is installed with the package.
    Module(&'static str),
    /// The folder `test` of the sources that the authors publish: all of it, or the files that are named.
    Sources(&'static [&'static str]),
}

const PACKAGES: [Package; 3] = [
    Package { name: "bitarray", version: "3.12.3", tests: Tests::Module("bitarray.test_bitarray") },
    Package { name: "msgpack", version: "1.2.4", tests: Tests::Sources(&[""]) },
    Package {
        name: "orjson",
        version: "3.13.0",
        // All of it takes many minutes under the checks.
        tests: Tests::Sources(&["test_numpy.py", "test_memory.py", "test_uuid.py", "test_enum.py"]),
    },
];

/// What the suites need beside: orjson's has tests of numpy's arrays.
const NEEDED: [&str; 6] =
    ["pytest==9.2.0", "numpy==2.4.6", "python-dateutil", "pytz", "faker", "psutil"];

/// Runs every suite twice, and compares how many tests passed, failed and were skipped.
///
/// # Errors
///
/// A suite that does not pass, or ends otherwise under the checks.
pub(super) fn run(shell: &Shell, wheel: &Path) -> Result<()> {
    let environment = Environment::new(shell, Path::new("python3"), "suites")?;
    let pip = environment.program("pip");
    let quiet = ["--quiet", "--disable-pip-version-check"];
    let versions = PACKAGES.map(|package| format!("{}=={}", package.name, package.version));
    cmd!(shell, "{pip} install {quiet...} --only-binary :all: {NEEDED...} {versions...}").run()?;
    cmd!(shell, "{pip} install {quiet...} --no-deps --force-reinstall {wheel}").run()?;
    for package in &PACKAGES {
        let tests = match package.tests {
            Tests::Module(name) => vec!["--pyargs".into(), name.into()],
            Tests::Sources(files) => {
                let folder = published(shell, &environment, package)?;
                files.iter().map(|file| folder.join(file)).collect()
            }
        };
        let plain = outcome(shell, &environment, &tests, None)?;
        let strict = outcome(shell, &environment, &tests, Some("--pymem=strict"))?;
        let Package { name, version, .. } = package;
        ensure!(plain == strict, "{name}: `{plain}` without the checks, `{strict}` with them");
        println!("{name} {version}: {plain}, with and without the checks");
    }
    Ok(())
}

/// The tests alone, out of the package's sources, so that they import the package that is installed.
fn published(shell: &Shell, environment: &Environment, package: &Package) -> Result<PathBuf> {
    let Package { name, version, .. } = package;
    // The folder is not called as the package: orjson's tests are a package of their own, which would hide the installed one.
    let tests = environment.folder().join("sources").join(name).join("test");
    if !tests.exists() {
        let (pip, python) = (environment.program("pip"), environment.program("python"));
        let scratch = shell.create_temp_dir()?;
        let into = scratch.path();
        let options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-binary"];
        cmd!(shell, "{pip} download {options...} :all: --dest {into} {name}=={version}").run()?;
        let archive = shell.read_dir(into)?.pop().context("no sources are published")?;
        cmd!(shell, "{python} -m tarfile --filter data -e {archive} {into}").quiet().run()?;
        let unpacked = into.join(format!("{name}-{version}/test"));
        shell.create_dir(tests.parent().context("a folder below the environment")?)?;
        cmd!(shell, "cp -r {unpacked} {tests}").quiet().run()?;
    }
    Ok(tests)
}

/// What pytest counts at the end of a session that passes.
fn outcome(
    shell: &Shell,
    environment: &Environment,
    tests: &[PathBuf],
    option: Option<&str>,
) -> Result<String> {
    let python = environment.program("python");
    let told = cmd!(shell, "{python} -m pytest -q -p no:cacheprovider {option...} {tests...}");
    let told = told.quiet().read()?;
    let counts = told.lines().next_back().and_then(|line| line.split(" in ").next());
    Ok(counts.context("pytest says nothing")?.to_owned())
}
