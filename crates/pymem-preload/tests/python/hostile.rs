//! Hostile variables and arguments: an error that says so, never a signal.
//!
//! A fake host (`tests/host`) makes a start cheap enough for every length and byte; a real interpreter gets a sample.

use std::env;
use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use pymem_domains::AllocatorName;

use crate::process::{Outcome, library, plain, python, run, succeed, tries_all, with_gil};
use crate::sweep::{State, sweep};

/// Each variable that the library reads, and the names by which a refusal may call it.
const VARIABLES: [&str; 10] = [
    "PYTHONMALLOC",
    "PYTHONMALLOCSTATS",
    "PYMEM_DEBUG",
    "PYMEM_REPORT",
    "PYMEM_STATS",
    "PYMEM_TRACE",
    "PYMEM_TRACE_LIMIT",
    "PYMEM_HEAP_MAP",
    "PYMEM_PROFILE",
    "PYMEM_LIMIT",
];

/// The fake host as cargo built it beside the tests.
fn host() -> PathBuf {
    let test = env::current_exe().expect("the test knows its own path");
    let target = test.parent().and_then(|deps| deps.parent()).expect("a target folder");
    let host = target.join("examples/libhost.so");
    assert!(host.is_file(), "{} is missing: cargo build --examples", host.display());
    host
}

/// A small program in which the fake host does `what`; the library is preloaded into it, or only at hand.
pub(crate) fn hosted(what: &str, preload: bool) -> Command {
    let (host, library) = (host(), library());
    let mut command = plain("true");
    let both = format!("{}:{}", host.display(), library.display());
    command.env("LD_PRELOAD", if preload { both.as_ref() } else { host.as_os_str() });
    command.env("PYMEM_HOST", what).env("PYMEM_HOST_LIBRARY", library);
    command
}

/// Bytes from 1 to 255 without the slash, so that a path stays in the test's folder.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let bytes = std::iter::repeat_with(|| random.u8(1..=255)).filter(|byte| *byte != b'/');
    bytes.take(length).collect()
}

/// Every length to 300 and some far beyond, up to what the system takes; every byte; and what `name` may mean, cut short.
fn values(seed: u64, name: &str) -> Vec<Vec<u8>> {
    let lengths = (0..=300).chain([1000, 4095, 4096, 4097, 65_536, 100_000]);
    let mut values: Vec<_> =
        lengths.map(|length| noise(seed << 32 | length as u64, length)).collect();
    values.extend((1..=u8::MAX).map(|byte| vec![byte]));
    let words: &[u8] = match name {
        "PYMEM_DEBUG" => {
            b"quarantine=4M:4096,guard=1/5000:8,backtrace=8,serial,leaks=18446744073709551616,strict"
        }
        "PYMEM_PROFILE" => b"held.json,sample=512K,frames=32,native,sample=18446744073709551616",
        "PYMEM_LIMIT" => b"none",
        _ => b"",
    };
    values.extend((1..=words.len()).map(|length| words[..length].to_vec()));
    values.extend((1..words.len()).map(|start| words[start..].to_vec()));
    if name.ends_with("LIMIT") {
        values.extend((1..=40).map(|digits| vec![b'9'; digits]));
    }
    values.retain(|value| !value.starts_with(b"/") && !value.starts_with(b".."));
    values.retain(|value| !is_too_little(name, value));
    values
}

/// Whether the host could not start with so little memory. CPython's own start ends by SIGSEGV where a call gives none.
fn is_too_little(name: &str, value: &[u8]) -> bool {
    name == "PYMEM_LIMIT" && value.len() < 9 && value.iter().all(u8::is_ascii_digit)
}

/// Accepted is status 0; refused is status 1 with one line that names the variable.
fn is_accepted(name: &str, value: &[u8], outcome: &Outcome) -> bool {
    let shown = || {
        format!("{name}={:?}, {} bytes: {outcome:?}", String::from_utf8_lossy(value), value.len())
    };
    match (outcome.status, outcome.signal) {
        (Some(0), None) => {
            let quiet = !matches!(name, "PYTHONMALLOCSTATS" | "PYMEM_STATS");
            // The picture and the statistics may say why they cannot be had; this host has no frames, which is said where stacks
            // are asked for.
            let ours = outcome.stderr.is_empty()
                || outcome.stderr.starts_with("pymem-preload: PYMEM_HEAP_MAP")
                || outcome.stderr.ends_with("reports have native frames alone\n");
            assert!(!quiet || ours || value.windows(5).any(|word| word == b"leaks"), "{}", shown());
            true
        }
        (Some(1), None) => {
            // A profile is refused to this host after the hooks have said that it has no frames.
            let said = outcome.stderr.split_once("reports have native frames alone\n");
            let said = said.map_or(outcome.stderr.as_str(), |(_, rest)| rest);
            let line = said.strip_prefix("pymem-preload: ");
            assert!(line.is_some_and(|line| line.starts_with(name)), "{}", shown());
            false
        }
        _ => panic!("{}", shown()),
    }
}

/// Every fourth of them, unless everything is to be tried.
#[test]
fn variables_of_every_length_and_byte() {
    let share = if tries_all() { 1 } else { 4 };
    let (mut accepted, mut refused) = (0, 0);
    for (seed, name) in (1..).zip(VARIABLES) {
        let values: Vec<_> = values(seed, name).into_iter().step_by(share).collect();
        let halves = values.split_at(values.len() / 2);
        let count = |values: &[Vec<u8>]| {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let accept = |value: &&Vec<u8>| {
                let mut command = hosted("serve", true);
                command.current_dir(folder.path()).env("PYTHONMALLOC", "pymalloc_debug");
                command.env(name, OsStr::from_bytes(value));
                if name == "PYMEM_TRACE_LIMIT" {
                    command.env("PYMEM_TRACE", "log");
                }
                is_accepted(name, value, &run(&mut command))
            };
            (values.iter().filter(accept).count(), values.len())
        };
        let counts = thread::scope(|scope| {
            let other = scope.spawn(|| count(halves.1));
            [count(halves.0), other.join().expect("the other half ran to its end")]
        });
        for (taken, all) in counts {
            accepted += taken;
            refused += all - taken;
        }
        println!("{name}: {accepted} accepted and {refused} refused so far");
    }
    let enough = accepted > 2_000 / share && refused > 1_000 / share;
    assert!(enough, "{accepted} accepted, {refused} refused");
}

/// The same of a real interpreter, a sample.
#[test]
fn variables_of_an_interpreter() {
    let Some(interpreter) = with_gil().last() else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut refused = 0;
    for (seed, name) in (1..).zip(VARIABLES) {
        for length in [1, 2, 8, 255, 256, 4096] {
            let value = noise(seed * 10_000 + length as u64, length);
            if is_too_little(name, &value) {
                continue;
            }
            let mut command = python(&interpreter.path, "pymalloc_debug");
            command.current_dir(folder.path()).env(name, OsStr::from_bytes(&value));
            let outcome = run(command.args(["-S", "-E", "-c", "pass"]));
            let outcome = match name {
                // The interpreter does not look at its own variables then.
                "PYTHONMALLOC" | "PYTHONMALLOCSTATS" => outcome,
                _ => {
                    let mut command = python(&interpreter.path, "pymalloc_debug");
                    command.current_dir(folder.path()).env(name, OsStr::from_bytes(&value));
                    run(command.args(["-S", "-c", "pass"]))
                }
            };
            refused += usize::from(!is_accepted(name, &value, &outcome));
        }
    }
    assert!(refused >= 12, "{refused} refused");
}

#[test]
fn the_c_interface_without_an_interpreter() {
    let path = CString::new(library().as_os_str().as_bytes()).expect("a path without NUL");
    // SAFETY: a library whose constructor does nothing unless it is preloaded.
    let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
    assert!(!library.is_null(), "{path:?} opens");
    let counts = sweep(library, State::NoHost);
    println!("{counts}");
    assert!(counts.names > 2_000 && counts.domains > 700, "{counts}");
}

#[test]
fn the_c_interface_of_a_served_host() {
    for row in AllocatorName::ALL.map(AllocatorName::as_str) {
        let counts = succeed(hosted("abi", true).env("PYTHONMALLOC", row));
        assert!(counts.contains(" names, "), "{row}: {counts}");
        println!("{row}: {}", counts.trim());
    }
}

/// A host that has the library's records may close it: it stays where it is.
#[test]
fn a_closed_library_stays() {
    let counts = succeed(&mut hosted("open", false));
    assert_eq!(counts.matches(" names, ").count(), 2, "{counts}");
}
