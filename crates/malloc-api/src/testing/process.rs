//! Owns tests that need a process of their own: for memory figures, forks, settings of the whole process, and memory checkers.

extern crate std;

use std::env;
use std::fs;
use std::process::Command;

const MARK: &str = "MALLOC_API_TEST_ALONE";

/// What starts the tests of another machine here: an emulator.
const RUNNER: &str = "MALLOC_API_TEST_RUNNER";

/// A process that runs the test `name` alone and shows what it prints.
///
/// `name` is the test's path in its binary, as the test runner prints it. Where the environment has `MALLOC_API_TEST_RUNNER`, that
/// program starts the test: the system itself starts no program of another machine.
///
/// # Panics
///
/// When the test does not know its own path.
#[must_use]
pub fn test_process(name: &str) -> Command {
    let test = env::current_exe().expect("the test knows its own path");
    let mut command = match env::var_os(RUNNER) {
        Some(runner) => {
            let mut command = Command::new(runner);
            command.arg(test);
            command
        }
        None => Command::new(test),
    };
    command.args(arguments(name));
    command
}

/// What the test runner is told, so that it runs the test `name` alone.
fn arguments(name: &str) -> [&str; 4] {
    ["--exact", name, "--nocapture", "--test-threads=1"]
}

/// Runs `body` in a fresh process that executes only the test `name`, or here if this is that process.
///
/// `name` is the test's path in its binary, as the test runner prints it.
///
/// # Panics
///
/// When the test fails in its process, or the process cannot be started.
///
/// # Examples
///
/// ```no_run
/// use malloc_api::testing::{alone, resident_bytes};
///
/// #[test]
/// fn memory_goes_back() {
///     alone("memory_goes_back", || {
///         let before = resident_bytes();
///         drop(vec![1_u8; 1 << 30]);
///         assert!(resident_bytes() < before + (1 << 20));
///     });
/// }
/// ```
pub fn alone(name: &str, body: impl FnOnce()) {
    if env::var_os(MARK).is_some() {
        body();
        return;
    }
    let status = test_process(name).env(MARK, "1").status().expect("the test can start itself");
    assert!(status.success(), "{name} failed in its own process: {status}");
}

/// A process that runs the test `name` alone under the memory checker of this build and ends with status 99 after a
/// report: memcheck with the feature `valgrind`, AddressSanitizer where the whole program is built for it.
///
/// `None` where no checker watches this build, or memcheck is not installed; it says so on the error stream. `name` is the
/// test's path in its binary, as the test runner prints it.
///
/// # Panics
///
/// When the test does not know its own path.
#[must_use]
pub fn under_memory_checker(name: &str) -> Option<Command> {
    let test = env::current_exe().expect("the test knows its own path");
    let memcheck = || Command::new("valgrind").arg("--version").output().is_ok();
    let mut command = if cfg!(pymem_asan) {
        let mut command = Command::new(test);
        command.env("ASAN_OPTIONS", "detect_leaks=0:exitcode=99:allocator_may_return_null=1");
        command
    } else if cfg!(feature = "valgrind") && memcheck() {
        let mut command = Command::new("valgrind");
        command.args(["-q", "--error-exitcode=99"]).arg(test);
        command
    } else {
        std::eprintln!("skipped: no memory checker watches this build");
        return None;
    };
    command.args(arguments(name));
    Some(command)
}

/// Physical memory that this process holds beside pages of files, in bytes.
///
/// Pages of the program and its libraries come and go by what the system has at hand.
///
/// # Panics
///
/// On a system without Linux's `/proc`.
#[must_use]
pub fn resident_bytes() -> usize {
    let status = fs::read_to_string("/proc/self/status").expect("Linux reports memory");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<usize>().ok());
    kib.expect("a number of KiB") * 1024
}
