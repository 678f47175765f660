//! Owns what becomes of mimalloc's mark that somebody gives memory back, in a child that is forked meanwhile: nobody takes it away there,
//! so that nothing would ever go back again.

use core::sync::atomic::{AtomicU32, Ordering};
use std::process;

use pymem_sync::{ForkLock, HeldOverFork, Rank};

use crate::ffi;

pub(crate) static OVER_FORKS: ForkLock = ForkLock::new(Rank::Memory, &Mark);

/// The process that forks. Relaxed: the thread that forks writes it, and reads it in the child.
static PARENT: AtomicU32 = AtomicU32::new(0);

struct Mark;

impl HeldOverFork for Mark {
    fn hold(&self) {
        PARENT.store(process::id(), Ordering::Relaxed);
    }

    unsafe fn release(&self) {
        if process::id() != PARENT.load(Ordering::Relaxed) {
            do_without();
        }
    }
}

/// Where the mark is set in a child, each page goes back as soon as it is free, for which mimalloc does not look at the mark.
fn do_without() {
    // SAFETY: no preconditions.
    let is_delayed = unsafe { ffi::mi_option_get(ffi::MI_OPTION_PURGE_DELAY) } > 0;
    if is_delayed && !ffi::may_purge() {
        // SAFETY: an option of 3.3.2, which no other thread reads, as there is none.
        unsafe { ffi::mi_option_set(ffi::MI_OPTION_PURGE_DELAY, 0) };
        // Nothing waits any more for which a thread would have to be started.
        ffi::purge_expires().store(0, Ordering::Relaxed);
    }
}
