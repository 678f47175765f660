//! Owns verifying the quarantines of the process when it exits.

use core::ptr;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

use std::sync::{Mutex, MutexGuard, Once, PoisonError};

/// Hooks of a process that are verified at exit, at most.
const MAX: usize = 64;

/// What is verified at exit: hooks that live until then.
pub(crate) trait Verify: Sync {
    /// Verifies what the quarantine holds.
    fn verify_held(&self);
}

static ALL: Mutex<[Option<&'static dyn Verify>; MAX]> = Mutex::new([None; MAX]);

/// Puts hooks on the list, once.
pub(crate) fn verify(hooks: &'static dyn Verify) {
    static REGISTER: Once = Once::new();
    let same = |known: &dyn Verify| ptr::addr_eq(known, hooks);
    let mut all = lock();
    let place = all.iter_mut().find(|place| place.is_none_or(same));
    if let Some(place) = place {
        *place = Some(hooks);
    }
    drop(all);
    REGISTER.call_once(|| {
        // SAFETY: a function without arguments that does not unwind. If it cannot be registered nothing is verified.
        unsafe { libc::atexit(verify_once) };
    });
}

/// A panicking handler leaves the list as it is.
fn lock() -> MutexGuard<'static, [Option<&'static dyn Verify>; MAX]> {
    ALL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Verifies all hooks on the list, the first time that it is called: before a report of leaks, which may end the process,
/// else at the exit itself.
pub(crate) extern "C" fn verify_once() {
    static DONE: AtomicBool = AtomicBool::new(false);
    // Relaxed: one thread runs what `exit` runs.
    if DONE.swap(true, Relaxed) {
        return;
    }
    verify_quarantines();
}

/// Verifies every freed block that hooks hold which are [verified at exit](crate::DebugHooks::verify_at_exit), now: a write
/// to one is found at once, and not when the block leaves. Each violation goes to its hooks' handler.
///
/// Where the allocator below needs a lock that its callers hold, so does this.
pub fn verify_quarantines() {
    // A copy: the handler of a violation may come back here.
    let all = *lock();
    for hooks in all.iter().flatten() {
        hooks.verify_held();
    }
}
