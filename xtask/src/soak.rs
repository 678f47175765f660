//! Owns `cargo xtask soak`: runs the load of `pymem-domains`' test `soak` for any time.

use anyhow::{Result, ensure};
use xshell::cmd;

use crate::workspace;

/// Seconds in which a planted bug must show.
const CONTROL_SECONDS: u32 = 60;

/// Runs the load for `minutes`. With `controls`, runs it with planted bugs instead, and each bug must make it fail.
pub(crate) fn run(minutes: f64, controls: bool) -> Result<()> {
    let shell = workspace::shell()?;
    let test = ["test", "--release", "-p", "pymem-domains", "--test", "soak"];
    if !controls {
        let _seconds = shell.push_env("PYMEM_SOAK_SECONDS", (minutes * 60.0).to_string());
        return Ok(cmd!(shell, "cargo {test...}").run()?);
    }
    let _seconds = shell.push_env("PYMEM_SOAK_SECONDS", CONTROL_SECONDS.to_string());
    for plant in ["leak", "write"] {
        let _plant = shell.push_env("PYMEM_SOAK_PLANT", plant);
        let output = cmd!(shell, "cargo {test...}").ignore_status().output()?;
        let text = String::from_utf8_lossy(&output.stderr);
        let seen = match plant {
            "leak" => text.contains("resident memory grew by"),
            // The bug overwrites another thread's block, or the allocator's own list.
            _ => text.contains("soak: panicked") || text.contains("signal: "),
        };
        ensure!(!output.status.success() && seen, "the planted {plant} was not seen:\n{text}");
        println!("soak: the planted {plant} was seen");
    }
    Ok(())
}
