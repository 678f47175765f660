//! Owns `cargo xtask bench`: builds the benchmark and what it measures, then hands over to it.
//!
//! The package `bench` measures and shows. This file knows what must be built first and where results go: those of a whole run to
//! `docs/`, those of a partial run below the target folder.

use std::ffi::{OsStr, OsString};

use anyhow::{Context, Result};
use xshell::{Shell, cmd};

use crate::{python, workspace};

/// Arguments of partial runs, which measure less than the documentation shows.
const PARTIAL: &[&str] = &["--quick", "--only", "--rows", "--trace", "--programs", "--output"];

/// Arguments of runs without the peers that are compiled from C and C++ for minutes, unless `--rows` names one.
const WITHOUT_PEERS: &[&str] = &["--quick", "--rows", "--python", "--redraw"];

/// These peers, as `--rows` has them.
const PEERS: &[&str] = &["jemalloc", "snmalloc"];

/// Arguments of modes that write no results.
const SILENT: &[&str] = &["--help", "-h", "--version", "-V", "--instructions"];

/// Builds and runs the benchmark with `arguments` (see `cargo xtask bench --help`).
pub(crate) fn run(arguments: &[OsString]) -> Result<()> {
    let shell = Shell::new()?;
    // Paths among the arguments are relative to the caller's folder.
    let caller = shell.current_dir();
    shell.change_dir(workspace::root());
    let given = |names: &[&str]| {
        arguments.iter().filter_map(|argument| argument.to_str()).any(|argument| {
            let name = argument.split_once('=').map_or(argument, |(name, _)| name);
            names.contains(&name)
        })
    };
    let names_peer = |argument: &OsString| {
        let argument = argument.to_string_lossy();
        PEERS.iter().any(|peer| argument.contains(peer))
    };
    let peers = arguments.iter().any(names_peer) || !given(WITHOUT_PEERS) && !given(SILENT);
    let peers = peers.then_some("--features=peers");
    let target = workspace::target();
    let mut arguments = arguments.to_vec();
    if given(&["--python"]) {
        arguments.extend(["--preload".into(), python::library()?.into()]);
        arguments.extend(["--fetched".into(), target.join("fetched").into()]);
    }
    if !given(&["--output"]) && !given(SILENT) {
        let output =
            if given(PARTIAL) { target.join("benchmarks") } else { workspace::root().join("docs") };
        arguments.extend(["--output".into(), output.into()]);
    }
    cmd!(shell, "cargo build --release -p bench {peers...}").run()?;
    let program = target.join("release/bench");
    let program: &OsStr = program.as_os_str();
    shell.change_dir(caller);
    cmd!(shell, "{program} {arguments...}").quiet().run().context("the benchmark failed")
}
