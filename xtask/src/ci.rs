//! Owns the list of checks that must be green before a change lands, cheap ones first, in two lanes that run side by side.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process_group};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use xshell::{Shell, cmd};

use crate::workspace::CRATES;
use crate::{
    aarch64, bench, docs, header, hosts, install, layers, loom, msrv, regrtest, snippets,
    third_party, wheel, workspace,
};

/// A named check; the name is what `cargo xtask ci NAME` takes.
struct Step {
    name: &'static str,
    run: fn(&Shell) -> Result<()>,
    when: When,
}

/// When a step runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    /// At every change, one by one with the others of its lane. The lanes run side by side: a step often waits for one processor. Steps
    /// that use the same files are in one lane, those of the `dev` profile in the first, those of the wheel in the second.
    Lane(usize),
    /// By name, and in the workflow: what repeats a step in another build, or for longer.
    ByName,
}

/// What runs the steps of one lane, in place of a step's name.
const LANES: [&str; 2] = ["lane-1", "lane-2"];

const fn first(name: &'static str, run: fn(&Shell) -> Result<()>) -> Step {
    Step { name, run, when: When::Lane(0) }
}

const fn second(name: &'static str, run: fn(&Shell) -> Result<()>) -> Step {
    Step { name, run, when: When::Lane(1) }
}

const fn by_name(name: &'static str, run: fn(&Shell) -> Result<()>) -> Step {
    Step { name, run, when: When::ByName }
}

const STEPS: &[Step] = &[
    first("fmt", fmt),
    first("layers", |_| layers::run()),
    first("deny", deny),
    first("docs", |_| docs::run(true)),
    first("header", |_| header::run(true)),
    first("clippy", clippy),
    first("package", package),
    first("test", test),
    first("examples", examples),
    first("doc", doc),
    first("msrv", |shell| msrv::check(shell, "--all-features")),
    first("third-party", |_| third_party::run()),
    second("loom", |_| loom::run(false, None)),
    // Those after it run on the library that the wheel ships.
    second("wheel", wheel::step),
    second("install", install::check),
    second("hosts", |_| hosts::short()),
    second("snippets", |_| snippets::run("", false)),
    second("bench", |_| quick_bench(&[])),
    second("instructions", instructions),
    second("regrtest", |_| regrtest::short()),
    by_name("clippy-alone", clippy_alone),
    by_name("msrv-alone", |shell| msrv::check(shell, "--no-default-features")),
    by_name("test-all", test_all),
    by_name("test-alone", test_alone),
    by_name("examples-release", |shell| run_examples(shell, "--release")),
    by_name("aarch64", aarch64::run),
    by_name("rustpython", |_| third_party::rustpython::run(1)),
    by_name("regrtest-rows", |_| regrtest::every_row()),
    by_name("bench-peers", |_| quick_bench(&["--rows=jemalloc,snmalloc"])),
];

pub(crate) fn run(only: Option<&str>) -> Result<()> {
    let Some(name) = only else { return all_lanes() };
    if name == "list" {
        STEPS.iter().for_each(|step| println!("{}", step.name));
        return Ok(());
    }
    let lane = LANES.iter().position(|lane| *lane == name).map(When::Lane);
    let steps: Vec<&Step> =
        STEPS.iter().filter(|step| lane == Some(step.when) || step.name == name).collect();
    if steps.is_empty() {
        let names: Vec<&str> = STEPS.iter().map(|step| step.name).collect();
        bail!("no step `{name}`; the steps are {}, and {}", names.join(", "), LANES.join(", "));
    }
    run_steps(&steps)
}

/// Runs the lanes side by side, the first on this terminal. What a step of another prints comes as a whole when the step has ended.
fn all_lanes() -> Result<()> {
    let start = Instant::now();
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        flag::register(signal, Arc::clone(&interrupted))?;
    }
    let mut lanes = Vec::new();
    for (at, name) in LANES.iter().enumerate() {
        // This program, whatever cargo has put in place of its file meanwhile.
        let mut lane = Command::new("/proc/self/exe");
        // A group of processes can be ended as a whole. Not being the terminal's, it must not read from there.
        lane.args(["ci", name]).process_group(0).stdin(Stdio::null());
        let mut printer = None;
        if at > 0 {
            let (reader, writer) = std::io::pipe()?;
            lane.stdout(writer.try_clone()?).stderr(writer);
            printer = Some(thread::spawn(move || print_by_step(BufReader::new(reader))));
        }
        let process = lane.spawn().with_context(|| format!("{name} does not start"))?;
        lanes.push((name, process, printer));
    }
    let mut running = true;
    while running {
        thread::sleep(Duration::from_millis(100));
        running = false;
        for at in 0..lanes.len() {
            let status = lanes[at].1.try_wait()?;
            let failed = status.is_some_and(|status| !status.success());
            running |= status.is_none();
            if failed || interrupted.load(Relaxed) {
                for (_, process, _) in &lanes {
                    // A group may have ended.
                    let _ = kill_process_group(Pid::from_child(process), Signal::KILL);
                }
                let (name, _, printer) = lanes.swap_remove(at);
                drop(printer.map(JoinHandle::join));
                bail!(
                    "{name}: {}",
                    status.map_or("interrupted".into(), |status| status.to_string())
                );
            }
        }
    }
    lanes.into_iter().filter_map(|(.., printer)| printer).for_each(|p| drop(p.join()));
    println!("=== ci: all green in {} s", start.elapsed().as_secs());
    Ok(())
}

/// Prints the lines of a lane, those of each step together.
fn print_by_step(lines: impl BufRead) {
    let mut step = String::new();
    for line in lines.split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        if line.starts_with("=== ") {
            print!("{}", std::mem::take(&mut step));
        }
        step.push_str(&line);
        step.push('\n');
    }
    print!("{step}");
}

/// Runs steps one by one, up to the first that fails.
fn run_steps(steps: &[&Step]) -> Result<()> {
    let shell = workspace::shell()?;
    let start = Instant::now();
    let mut times = Vec::new();
    for Step { name, run, .. } in steps {
        println!("=== {name}");
        let (begin, used) = (Instant::now(), processor_seconds()?);
        run(&shell).with_context(|| format!("`cargo xtask ci {name}` failed"))?;
        let (seconds, used) = (begin.elapsed().as_secs(), processor_seconds()? - used);
        times.push(format!("{name} {seconds} s, {used} of a processor"));
    }
    println!("=== ci: all green in {} s ({})", start.elapsed().as_secs(), times.join("; "));
    Ok(())
}

/// Processor time of this process and of the children that have ended.
fn processor_seconds() -> Result<u64> {
    /// In all that Linux tells programs.
    const TICKS_PER_SECOND: u64 = 100;
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // After the command's name, which may have spaces: user and system mode, then those of children.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace();
    let ticks: u64 = fields.skip(11).take(4).filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(ticks / TICKS_PER_SECOND)
}

fn fmt(shell: &Shell) -> Result<()> {
    Ok(cmd!(shell, "cargo fmt --all --check").run()?)
}

/// Checks the licences and sources of the dependencies. Advisories are left to the workflow, since their database needs a network.
fn deny(shell: &Shell) -> Result<()> {
    if cmd!(shell, "cargo deny --version").quiet().ignore_stdout().ignore_stderr().run().is_err() {
        println!("skipped: it needs cargo-deny; cargo install --locked cargo-deny");
        return Ok(());
    }
    Ok(cmd!(shell, "cargo deny check licenses bans sources").run()?)
}

fn clippy(shell: &Shell) -> Result<()> {
    // Not with the features of `bench`: the C and C++ sources of its peers take minutes.
    cmd!(shell, "cargo clippy -p bench -p xtask --all-targets -- -D warnings").run()?;
    Ok(cmd!(shell, "cargo clippy --all-targets --all-features -- -D warnings").run()?)
}

/// Looks at each crate by itself without its features, where what only a feature uses is left over.
fn clippy_alone(shell: &Shell) -> Result<()> {
    for name in CRATES {
        cmd!(shell, "cargo clippy -q -p {name} --no-default-features -- -D warnings").run()?;
    }
    Ok(())
}

fn test(shell: &Shell) -> Result<()> {
    // Some tests run an example as a child.
    cmd!(shell, "cargo build -q --workspace --examples").run()?;
    let library = checked_library(shell)?;
    let test = cmd!(shell, "cargo test --workspace --lib --bins --tests");
    Ok(test.env("PYMEM_TEST_LIBRARY", library).run()?)
}

/// Runs the preload's tests with all that `test` takes a share of: on every interpreter, and with every value.
fn test_all(shell: &Shell) -> Result<()> {
    cmd!(shell, "cargo build -q --workspace --examples").run()?;
    let library = checked_library(shell)?;
    let test = cmd!(shell, "cargo test -p pymem-preload --test python");
    Ok(test.env("PYMEM_TEST_LIBRARY", library).env("PYMEM_TEST_ALL", "1").run()?)
}

fn checked_library(shell: &Shell) -> Result<PathBuf> {
    cmd!(shell, "cargo build -q --profile checked -p pymem-preload --lib").run()?;
    Ok(workspace::target().join("checked/libpymem_preload.so"))
}

/// Tests each crate by itself, so that no crate relies on a feature that only another crate switches on. The tests of a crate
/// without default features have run already, so that building them is enough.
fn test_alone(shell: &Shell) -> Result<()> {
    const WITHOUT_DEFAULTS: &[&str] = &["mimalloc-heaps", "malloc-trace", "pymem-preload"];
    for name in CRATES {
        let no_run = WITHOUT_DEFAULTS.contains(name).then_some("--no-run");
        cmd!(shell, "cargo test -q -p {name} --no-default-features --lib --tests {no_run...}")
            .run()?;
    }
    // Some tests take the profile from this variable.
    let test = cmd!(shell, "cargo test -q -p pymem-domains --test it");
    Ok(test.env("PYMEM_TEST_PROFILE", "free-threaded debug").run()?)
}

/// Runs each example of each crate. Examples assert what they show.
fn examples(shell: &Shell) -> Result<()> {
    for name in CRATES {
        for file in shell.read_dir(workspace::root().join("crates").join(name).join("examples"))? {
            if file.extension().is_some_and(|end| end == "rs") {
                let lines = shell.read_file(&file)?.lines().count();
                let file = file.display();
                ensure!(lines < 60, "{file} has {lines} lines; show one thing, in fewer than 60");
            }
        }
    }
    // With the features of `test`, which has built them.
    run_examples(shell, "--workspace")
}

/// Builds the examples with `option` and runs them. Release builds matter too: an optimiser may merge or drop what an example shows.
fn run_examples(shell: &Shell, option: &str) -> Result<()> {
    for (name, program) in workspace::programs(cmd!(shell, "cargo build --examples {option}"))? {
        println!("{name}");
        cmd!(shell, "{program}").ignore_stdout().quiet().run()?;
    }
    Ok(())
}

fn doc(shell: &Shell) -> Result<()> {
    let _warnings = shell.push_env("RUSTDOCFLAGS", "-D warnings");
    cmd!(shell, "cargo doc --no-deps --all-features").run()?;
    Ok(cmd!(shell, "cargo test --doc --all-features").run()?)
}

/// Checks every crate from its package, as it would be published: what is packed, and what it says of the others.
fn package(shell: &Shell) -> Result<()> {
    let folder = workspace::target().join("package");
    shell.remove_path(&folder)?;
    let packed = ["--no-verify", "--allow-dirty"];
    cmd!(shell, "cargo package --quiet --workspace {packed...}").run()?;
    let (mut members, mut patches) = (Vec::new(), String::new());
    for name in CRATES {
        let unpacked = format!("{name}-{}", env!("CARGO_PKG_VERSION"));
        let packed = folder.join(format!("{unpacked}.crate"));
        // Packed files are of the year 2006, by which cargo would take what it has built of an older state for this one.
        cmd!(shell, "tar --extract --touch --gzip --file {packed} --directory {folder}")
            .quiet()
            .run()?;
        writeln!(patches, "{name} = {{ path = \"{unpacked}\" }}")?;
        members.push(unpacked);
    }
    let workspace = format!("[workspace]\nresolver = \"3\"\nmembers = {members:?}\n");
    let manifest = folder.join("Cargo.toml");
    shell.write_file(&manifest, format!("{workspace}[patch.crates-io]\n{patches}"))?;
    shell.copy_file(workspace::root().join("Cargo.lock"), &folder)?;
    let target = workspace::target();
    cmd!(shell, "cargo check --quiet --manifest-path {manifest} --target-dir {target}").run()?;
    Ok(shell.remove_path(&folder)?)
}

/// Runs the whole benchmark at its quickest, to see that it runs.
fn quick_bench(options: &[&str]) -> Result<()> {
    let arguments = ["--quick", "--threads=0"].iter().chain(options);
    bench::run(&arguments.map(Into::into).collect::<Vec<_>>())
}

/// Compares the instruction counts of the hot paths with the committed baseline. Callgrind counts the same on a busy machine.
fn instructions(shell: &Shell) -> Result<()> {
    if cmd!(shell, "valgrind --version").quiet().ignore_stdout().ignore_stderr().run().is_err() {
        println!("skipped: counting instructions needs valgrind, which is not installed");
        return Ok(());
    }
    bench::run(&["--instructions".into()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workflow_has_a_job_for_every_step() {
        let path = workspace::root().join(".github/workflows/ci.yml");
        let workflow = std::fs::read_to_string(path).unwrap();
        let list = workflow.lines().find_map(|line| line.trim().strip_prefix("step: [")).unwrap();
        let listed: Vec<&str> = list.trim_end_matches(']').split(", ").collect();
        assert_eq!(listed, STEPS.iter().map(|step| step.name).collect::<Vec<_>>());
    }
}
