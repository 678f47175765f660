//! Owns the circumstances of a run: machine, day, commit.

use std::ffi::CStr;
use std::process::Command;

use crate::report::Origin;

/// What this machine, clock and work tree say; what they do not say is left out.
pub(crate) fn here() -> Origin {
    let commit = output("git", &["describe", "--always", "--dirty=+", "--exclude=*"]);
    Origin { machine: machine(), date: output("date", &["-u", "+%Y-%m-%d"]), commit }
}

fn machine() -> String {
    let processor = field("/proc/cpuinfo", "model name").unwrap_or_default();
    let cores = match std::thread::available_parallelism().map_or(1, usize::from) {
        1 => "1 core".to_owned(),
        count => format!("{count} cores"),
    };
    let kilobytes = field("/proc/meminfo", "MemTotal").unwrap_or_default();
    let kilobytes: u64 =
        kilobytes.split_whitespace().next().and_then(|text| text.parse().ok()).unwrap_or(0);
    let release = read("/proc/sys/kernel/osrelease");
    let kernel = release.split('-').next().unwrap_or_default();
    // SAFETY: no arguments, and the result is a static terminated string.
    let version = unsafe { libc::gnu_get_libc_version() };
    // SAFETY: see above.
    let version = unsafe { CStr::from_ptr(version) }.to_string_lossy();
    let pages = read("/sys/kernel/mm/transparent_hugepage/enabled");
    let pages = pages.split(['[', ']']).nth(1).unwrap_or("unknown");
    format!(
        "{processor} ({}), {cores}, {} GiB, Linux {kernel}, glibc {version}, transparent huge pages: {pages}",
        std::env::consts::ARCH,
        kilobytes.div_ceil(1 << 20),
    )
}

fn field(file: &str, name: &str) -> Option<String> {
    let text = read(file);
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn read(file: &str) -> String {
    std::fs::read_to_string(file).unwrap_or_default().trim().to_owned()
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output =
        Command::new(program).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    output
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        .unwrap_or_default()
}
