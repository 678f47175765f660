//! Owns the deadline of a process that ends by `_exit`: what is written there may wait for a lock that this very thread holds, where a
//! signal handler ends the process.

use core::ffi::c_int;
use core::ptr;
use core::sync::atomic::{AtomicI32, Ordering::Relaxed};

/// The status to end with.
static STATUS: AtomicI32 = AtomicI32::new(0);

extern "C" fn give_up(_signal: c_int) {
    // SAFETY: it takes a number, and ends the process with all of its threads.
    unsafe { libc::syscall(libc::SYS_exit_group, STATUS.load(Relaxed)) };
}

/// Ends this process with `status` once so many `seconds` are over; SIGALRM is no longer the program's. May be called in a signal handler.
pub(crate) fn end_within(seconds: u32, status: c_int) {
    // The handler runs later, on any thread: whatever it reads is then this, or the same of another thread that ends the process.
    STATUS.store(status, Relaxed);
    // SAFETY: all zeros are a valid `sigaction`: no flags, and an empty mask.
    let mut action: libc::sigaction = unsafe { core::mem::zeroed() };
    action.sa_sigaction = give_up as extern "C" fn(c_int) as usize;
    // SAFETY: all zeros are a valid set, which is filled by the C library.
    let mut alarm: libc::sigset_t = unsafe { core::mem::zeroed() };
    // SAFETY: a filled action whose handler takes one number.
    unsafe { libc::sigaction(libc::SIGALRM, &raw const action, ptr::null_mut()) };
    // SAFETY: a set of ours.
    unsafe { libc::sigemptyset(&raw mut alarm) };
    // SAFETY: as above.
    unsafe { libc::sigaddset(&raw mut alarm, libc::SIGALRM) };
    // SAFETY: a filled set, for this thread.
    unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const alarm, ptr::null_mut()) };
    // SAFETY: it takes a number.
    unsafe { libc::alarm(seconds) };
}
