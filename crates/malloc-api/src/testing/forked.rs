//! Owns the child of a fork that a test lets work.

extern crate std;

use std::os::unix::process::ExitStatusExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitStatus;

/// A child that hangs is ended by a signal after so many seconds: patient, as only a failing test waits for it.
const PATIENCE: u32 = 60;

/// What a child ends with when its work panics, as programs do.
const PANICKED: i32 = 101;

/// Forks, lets the child do `work` and end at once, and waits for the child: its number, and how it ended.
///
/// The child ends with status 0, with 101 if `work` panics, and by `SIGALRM` if it takes longer than a minute. Nothing of the parent's
/// runs in it after `work`: no destructor and no handler.
///
/// # Panics
///
/// When the system does not fork.
///
/// # Safety
///
/// 1. What `work` calls may be called in the child of a process with the parent's threads: it allocates and locks only what handlers of
///    forks keep usable, or what no other thread uses.
pub unsafe fn forked(work: impl FnOnce()) -> (i32, ExitStatus) {
    // SAFETY: by duty 1.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "the system does not fork");
    if child == 0 {
        // SAFETY: no preconditions.
        unsafe { libc::alarm(PATIENCE) };
        let status = catch_unwind(AssertUnwindSafe(work)).map_or(PANICKED, |()| 0);
        // SAFETY: ends the child.
        unsafe { libc::_exit(status) };
    }
    let mut status = -1;
    // SAFETY: a child of this process that nobody else waits for, and room for its status.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    (child, ExitStatus::from_raw(status))
}
