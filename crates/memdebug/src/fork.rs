//! Owns the process-wide locks across `fork`: all are taken before it and released after it on both sides, so that the
//! child never meets a lock whose holder it does not have.
//!
//! The rings of a quarantine are not among them: they are passed over when locked.

use core::cell::UnsafeCell;

use std::sync::{MutexGuard, Once};

use crate::checks::registry;
use crate::guard::pool;
use crate::sites::site;

/// The locks, in the order in which they are taken.
struct AllLocks {
    _registry: registry::AllShards,
    _sites: site::AllShards,
    _guard: Option<MutexGuard<'static, pool::Free>>,
}

struct Held(UnsafeCell<Option<AllLocks>>);

// SAFETY: touched only by the thread that forks, while it holds every lock that it would put in here: a second thread that
// forks waits in `prepare` before it gets as far.
unsafe impl Sync for Held {}

static HELD: Held = Held(UnsafeCell::new(None));

/// Registers the handlers, once for the process.
pub(crate) fn install() {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        // SAFETY: three functions without arguments that do not unwind. Without memory for them, forks go unguarded.
        unsafe { libc::pthread_atfork(Some(prepare), Some(release), Some(release)) };
    });
}

extern "C" fn prepare() {
    let locks = AllLocks {
        _registry: registry::LIVE.lock_all(),
        _sites: site::lock_all(),
        _guard: pool::lock_all(),
    };
    // SAFETY: every lock is held, so no other thread is here.
    unsafe { *HELD.0.get() = Some(locks) };
}

extern "C" fn release() {
    // SAFETY: the thread that forked still holds every lock, in the child too.
    let locks = unsafe { (*HELD.0.get()).take() };
    drop(locks);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lock_is_held_over_the_fork() {
        assert!(pool::set_up(64));
        let locked = || (registry::LIVE.locked(), site::locked(), pool::is_locked());
        assert_eq!(locked(), (0, 0, false));
        prepare();
        assert_eq!(locked(), (64, 16, true));
        release();
        assert_eq!(locked(), (0, 0, false));
    }
}
