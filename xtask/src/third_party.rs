//! Owns `cargo xtask third-party`: runs the test suite of a published crate with the obj domain as its global allocator, on
//! every row of the table.
//!
//! A copy of the crate gets a dependency on `third_party/allocator.rs` and one line that links it. Each test program prints at exit
//! what the domain served. The last run shows that the suite notices a `realloc` that loses a byte.

pub(crate) mod rustpython;

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use pymem_domains::AllocatorName;
use serde_json::Value;
use xshell::{Shell, cmd};

use crate::workspace;

/// Ordered hash tables. Many of the crate's tests fill, grow and shrink tables of random content.
const NAME: &str = "indexmap";
const VERSION: &str = "2.14.2";

const ALLOCATOR: &str = include_str!("third_party/allocator.rs");

pub(crate) fn run() -> Result<()> {
    let shell = workspace::shell()?;
    let folder = workspace::target().join("third-party");
    write_allocator(&shell, &folder.join("allocator"))?;
    let copy = folder.join(NAME);
    copy_crate(&shell, &published(&shell, &folder.join("source"))?, &copy)?;
    let suite = Suite { manifest: copy.join("Cargo.toml") };
    let mut rows = AllocatorName::ALL.into_iter().filter(|name| !name.is_relative());
    rows.try_for_each(|row| suite.must_pass(row))?;
    suite.must_notice_a_lost_byte()
}

/// The folder of the published crate, which cargo fetches for a package in `folder` that depends on it.
fn published(shell: &Shell, folder: &Path) -> Result<PathBuf> {
    let manifest = folder.join("Cargo.toml");
    let text = format!(
        r#"[package]
name = "source"

[lib]
path = "lib.rs"

[dependencies]
{NAME} = "={VERSION}"

[workspace]
"#
    );
    shell.write_file(&manifest, text)?;
    shell.write_file(folder.join("lib.rs"), "")?;
    let metadata = cmd!(shell, "cargo metadata --format-version 1 --manifest-path {manifest}");
    let metadata: Value = serde_json::from_str(&metadata.quiet().read()?)?;
    let packages = metadata["packages"].as_array().context("cargo lists no packages")?;
    let package = packages.iter().find(|p| p["name"] == NAME && p["version"] == VERSION);
    let manifest = package.and_then(|package| package["manifest_path"].as_str());
    let manifest = manifest.with_context(|| format!("cargo has not got {NAME} {VERSION}"))?;
    Ok(Path::new(manifest).with_file_name(""))
}

fn write_allocator(shell: &Shell, folder: &Path) -> Result<()> {
    let crates = workspace::root().join("crates");
    let crates = crates.display();
    let manifest = format!(
        r#"[package]
name = "test-allocator"
version = "0.0.0"
edition = "2024"

[lib]
path = "lib.rs"

[dependencies]
malloc-api = {{ path = "{crates}/malloc-api" }}
pymem-domains = {{ path = "{crates}/pymem-domains" }}
libc = "0.2"

[workspace]
"#
    );
    shell.write_file(folder.join("Cargo.toml"), manifest)?;
    Ok(shell.write_file(folder.join("lib.rs"), ALLOCATOR)?)
}

/// Copies a crate to `copy` and links the allocator into its library, and so into everything that uses it.
fn copy_crate(shell: &Shell, published: &Path, copy: &Path) -> Result<()> {
    shell.remove_path(copy)?;
    cmd!(shell, "cp -r {published} {copy}").quiet().run()?;
    append(&copy.join("src/lib.rs"), "\nextern crate test_allocator as _;\n")?;
    append(
        &copy.join("Cargo.toml"),
        "\n[dependencies.test-allocator]\npath = \"../allocator\"\n\n[workspace]\n",
    )
}

fn append(path: &Path, text: &str) -> Result<()> {
    let file = OpenOptions::new().append(true).open(path);
    let mut file = file.with_context(|| format!("cannot open {}", path.display()))?;
    Ok(file.write_all(text.as_bytes())?)
}

struct Suite {
    manifest: PathBuf,
}

impl Suite {
    fn command(&self, row: AllocatorName) -> Command {
        let mut command = Command::new("cargo");
        command.args(["test", "--lib", "--tests", "--no-fail-fast", "--manifest-path"]);
        command.arg(&self.manifest).env("CARGO_TARGET_DIR", workspace::target());
        command.env("PYTHONMALLOC", row.as_str());
        command
    }

    fn must_pass(&self, row: AllocatorName) -> Result<()> {
        let output = self.command(row).output().context("cargo")?;
        let run = Run::of(&output);
        ensure!(output.status.success(), "{NAME} fails under {row}:\n{}", run.text);
        let served = &run.served;
        let all = served.iter().all(|(by, blocks)| by == row.as_str() && *blocks > 0);
        ensure!(
            all && served.len() == run.programs && run.passed > 0,
            "{} programs of {NAME} ran {} tests, but {row} served {served:?}:\n{}",
            run.programs,
            run.passed,
            run.text
        );
        let blocks: u64 = served.iter().map(|(_, blocks)| blocks).sum();
        println!("{NAME}, {row}: {} tests passed, {blocks} blocks served", run.passed);
        Ok(())
    }

    fn must_notice_a_lost_byte(&self) -> Result<()> {
        let output = self.command(AllocatorName::Default).env("PYMEM_LOSE_A_BYTE", "1").output();
        let output = output.context("cargo")?;
        let run = Run::of(&output);
        ensure!(
            !output.status.success(),
            "{NAME} does not notice a realloc that loses a byte:\n{}",
            run.text
        );
        println!("{NAME}: {} tests fail with a realloc that loses a byte", run.failed);
        Ok(())
    }
}

/// What a run of `cargo test` printed.
struct Run {
    text: String,
    programs: usize,
    passed: u64,
    failed: u64,
    /// The row that served each program, and how many blocks it made or resized.
    served: Vec<(String, u64)>,
}

impl Run {
    fn of(output: &Output) -> Self {
        let text = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
        let text = text.concat();
        let count = |word: &str| -> u64 {
            let results = text.lines().filter_map(|line| line.strip_prefix("test result: "));
            let counts = results.flat_map(|line| line.split([';', '.']));
            counts
                .filter_map(|part| part.trim().strip_suffix(word)?.trim().parse::<u64>().ok())
                .sum()
        };
        let served = text.lines().filter_map(|line| {
            let (row, blocks) = line.strip_prefix("served by ")?.split_once(": ")?;
            Some((row.to_owned(), blocks.parse().ok()?))
        });
        Self {
            programs: text.lines().filter(|line| line.trim_start().starts_with("Running ")).count(),
            passed: count("passed"),
            failed: count("failed"),
            served: served.collect(),
            text,
        }
    }
}
