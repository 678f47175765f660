//! Owns starting a test under the memory checker of this build, whose reports the test that starts it reads.

extern crate std;

use std::env;
use std::process::Command;

use super::process::arguments;

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
