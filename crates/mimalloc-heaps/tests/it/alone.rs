//! Runs a test in a process of its own: for memory figures, forks, and settings of the whole process.

use std::env;
use std::process::Command;

const MARK: &str = "MIMALLOC_HEAPS_TEST_ALONE";

/// Runs `body` in a fresh process that executes only the test `name`, or here if this is that process.
pub(crate) fn alone(name: &str, body: impl FnOnce()) {
    if env::var_os(MARK).is_some() {
        body();
        return;
    }
    let program = env::current_exe().expect("the test knows its own path");
    let status = Command::new(program)
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(MARK, "1")
        .status()
        .expect("the test can start itself");
    assert!(status.success(), "{name} failed in its own process: {status}");
}

/// Resident memory of this process in bytes.
pub(crate) fn resident_bytes() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").expect("Linux reports memory");
    let pages: usize = text.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap();
    // SAFETY: no preconditions.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    pages * usize::try_from(page).unwrap()
}
