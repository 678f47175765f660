//! The workspace's own commands: `cargo xtask <command>`.
//!
//! `main.rs` owns the command line; every command lives in the file of its name.

mod ci;
mod layers;

use std::path::PathBuf;
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
    /// Check that crates import only what docs/architecture.md allows.
    Layers,
}

/// The workspace's root folder.
fn root() -> PathBuf {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().map_or(manifest.clone(), PathBuf::from)
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
        Command::Layers => layers::run()?,
    }
    Ok(ExitCode::SUCCESS)
}
