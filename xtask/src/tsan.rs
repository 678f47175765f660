//! Owns the ThreadSanitizer run: the stress programs of `pymem-sync` on nightly, and a race that must be reported.

use anyhow::{Result, ensure};
use xshell::cmd;

use crate::workspace;

/// The standard library is not instrumented, so that the programs use only what works without.
const FLAGS: &str = "-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer --cfg pymem_tsan";
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// ThreadSanitizer's exit status after a report.
const REPORTED: i32 = 66;

/// Runs each stress program for `millis` milliseconds.
pub(crate) fn run(millis: u32) -> Result<()> {
    let shell = workspace::shell()?;
    let _flags = shell.push_env("RUSTFLAGS", FLAGS);
    let _millis = shell.push_env("PYMEM_STRESS_MILLIS", millis.to_string());
    let test = ["test", "-p", "pymem-sync", "--test", "tsan", "--target", TARGET];
    let race = cmd!(shell, "cargo +nightly {test...}").env("PYMEM_TSAN_RACE", "1");
    let race = race.ignore_status().output()?;
    let text = String::from_utf8_lossy(&race.stderr);
    ensure!(
        !race.status.success()
            && text.contains("WARNING: ThreadSanitizer: data race")
            && text.contains(&format!("exit status: {REPORTED}")),
        "the race on purpose was not reported, so a silent run says nothing:\n{text}"
    );
    cmd!(shell, "cargo +nightly {test...}").run()?;
    println!("tsan: the race on purpose was found, and there is no other report");
    Ok(())
}
