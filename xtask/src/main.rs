//! The workspace's own commands: `cargo xtask <command>`.
//!
//! `main.rs` owns the command line; every command lives in the file of its name.

mod aarch64;
mod bench;
mod ci;
mod docs;
mod fuzz;
mod header;
mod hosts;
mod install;
mod layers;
mod loom;
mod msrv;
mod mutants;
mod python;
#[cfg(test)]
mod refusals;
mod regrtest;
mod sanitize;
mod semver;
mod snippets;
mod soak;
mod third_party;
mod tsan;
mod unsafe_list;
mod wheel;
mod workspace;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The workspace's own commands", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Everything that must be green before a change lands.
    Ci {
        /// Run only the step of this name; `list` prints the names.
        step: Option<String>,
    },
    /// Run an unmodified Python on the project's allocators.
    Python(python::Args),
    /// Run CPython's own tests on the preload, for every interpreter and row.
    Regrtest(regrtest::Args),
    /// Run every check on every kind of interpreter, and print what each saw as a table.
    Hosts(hosts::Args),
    /// Install the preload, its C header and its pkg-config file.
    Install(install::Args),
    /// Build the Python wheel, and check it.
    Wheel(wheel::Args),
    /// Run every command of the documents, and compare what it prints with what they show.
    Snippets {
        /// Only commands whose text, or whose document's name, contains this.
        #[arg(default_value = "")]
        filter: String,
        /// Put what is printed into the documents instead.
        #[arg(long)]
        write: bool,
    },
    /// Check what may stand where: imports of crates and files, memory orderings, what safety comments cite.
    Layers,
    /// Write the generated parts of the documentation from the code.
    Docs {
        /// Compare them instead, and fail when they differ.
        #[arg(long)]
        check: bool,
    },
    /// Write `pymem.h` from the preload's C interface.
    Header {
        /// Compare it instead, and fail when it differs.
        #[arg(long)]
        check: bool,
    },
    /// Model-check every lock-free structure.
    Loom {
        /// Run the negative controls: each weakened ordering must make its model fail.
        #[arg(long)]
        controls: bool,
        /// Only models whose name contains this.
        filter: Option<String>,
    },
    /// Plant faults in a crate, one at a time, which its tests must notice (needs cargo-mutants).
    Mutants {
        /// Only this crate.
        name: Option<String>,
        /// At most this many faults a crate.
        #[arg(long, default_value_t = 600)]
        sample: usize,
        /// What chooses the faults.
        #[arg(long, default_value_t = 7)]
        seed: u64,
    },
    /// Run the test suite of a crate that knows nothing of us on the obj domain as its global allocator.
    ThirdParty,
    /// Compare the public interfaces of the published crates with those of a release (needs cargo-semver-checks).
    Semver {
        /// The revision to compare with; otherwise the last tag.
        #[arg(long, value_name = "REVISION")]
        baseline: Option<String>,
    },
    /// Run CPython's tests in RustPython with the obj domain as its global allocator, beside its own allocator and mimalloc.
    Rustpython {
        /// How often each row runs, in turn.
        #[arg(long, default_value_t = 9)]
        rounds: usize,
    },
    /// Run the stress programs under ThreadSanitizer, and a race that it must report (needs nightly).
    Tsan {
        /// Milliseconds each program.
        #[arg(default_value_t = 2000)]
        millis: u32,
    },
    /// Run the tests of the crates with unsafe code under AddressSanitizer (needs nightly).
    Asan,
    /// Run tests under LeakSanitizer (needs nightly).
    Lsan,
    /// Run tests, and an interpreter on the preload, under Valgrind's memcheck (needs Valgrind 3.19 or later).
    Valgrind,
    /// Put 64 threads on all rows of the table at once and check every block and resident memory.
    Soak {
        /// For how long.
        #[arg(default_value_t = 10.0)]
        minutes: f64,
        /// Plant a leak, and a write after a free, for a minute each: both must be seen.
        #[arg(long)]
        controls: bool,
    },
    /// Replay traces through our allocators, CPython's own and their peers; `bench --help` lists its options.
    #[command(disable_help_flag = true)]
    Bench {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Run every fuzz target for the same time each (needs nightly and cargo-fuzz).
    Fuzz {
        /// Seconds a target.
        #[arg(default_value_t = 60)]
        seconds: u32,
        /// Only this target.
        #[arg(long)]
        target: Option<String>,
        /// Run them at the same time.
        #[arg(long)]
        together: bool,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Ci { step } => ci::run(step.as_deref())?,
        Command::Python(args) => return python::run(args),
        Command::Regrtest(args) => return regrtest::run(args),
        Command::Hosts(args) => hosts::run(&args)?,
        Command::Install(args) => install::run(&args)?,
        Command::Wheel(args) => wheel::run(&args)?,
        Command::Snippets { filter, write } => snippets::run(&filter, write)?,
        Command::Layers => layers::run()?,
        Command::Docs { check } => docs::run(check)?,
        Command::Header { check } => header::run(check)?,
        Command::Loom { controls, filter } => loom::run(controls, filter)?,
        Command::Mutants { name, sample, seed } => mutants::run(name.as_deref(), sample, seed)?,
        Command::ThirdParty => third_party::run()?,
        Command::Semver { baseline } => semver::run(baseline)?,
        Command::Rustpython { rounds } => third_party::rustpython::run(rounds)?,
        Command::Tsan { millis } => tsan::run(millis)?,
        Command::Asan => sanitize::asan()?,
        Command::Lsan => sanitize::lsan()?,
        Command::Valgrind => sanitize::valgrind()?,
        Command::Soak { minutes, controls } => soak::run(minutes, controls)?,
        Command::Bench { arguments } => bench::run(&arguments)?,
        Command::Fuzz { seconds, target, together } => {
            fuzz::run(seconds, target.as_deref(), together)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
