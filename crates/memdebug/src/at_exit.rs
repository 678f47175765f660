//! Owns verifying the quarantines of the process when it exits.

use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use crate::checks::quarantine::Quarantine;
use crate::os::mapping::Mapped;

/// Quarantines of a process that are verified at exit, at most; the next ones are verified as blocks leave them, and when their
/// hooks go.
const MAX: usize = 64;

/// Addresses of the quarantines. An address is removed before its quarantine goes.
static ALL: Mutex<[Option<Place>; MAX]> = Mutex::new([const { None }; MAX]);

struct Place(core::ptr::NonNull<Quarantine>);

// SAFETY: a `Quarantine` is `Sync`; the pointer is used under the lock alone.
unsafe impl Send for Place {}

/// A quarantine that is verified at exit, if it lives until then.
#[derive(Debug)]
pub(crate) struct VerifiedAtExit(Mapped<Quarantine>);

impl core::ops::Deref for VerifiedAtExit {
    type Target = Quarantine;

    fn deref(&self) -> &Quarantine {
        &self.0
    }
}

/// Puts a quarantine on the list; `None` if there is no memory for it.
pub(crate) fn verify(quarantine: Quarantine) -> Option<VerifiedAtExit> {
    static REGISTER: Once = Once::new();
    let quarantine = Mapped::new(quarantine)?;
    if let Some(place) = lock().iter_mut().find(|place| place.is_none()) {
        *place = Some(Place((&*quarantine).into()));
    }
    REGISTER.call_once(|| {
        // SAFETY: a function without arguments that does not unwind. If it cannot be registered nothing is verified.
        unsafe { libc::atexit(verify_once) };
    });
    Some(VerifiedAtExit(quarantine))
}

impl Drop for VerifiedAtExit {
    fn drop(&mut self) {
        let gone = core::ptr::NonNull::from(&*self.0);
        for place in lock().iter_mut() {
            if place.as_ref().is_some_and(|place| place.0 == gone) {
                *place = None;
            }
        }
    }
}

/// A panicking handler leaves the list as it is.
fn lock() -> MutexGuard<'static, [Option<Place>; MAX]> {
    ALL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Verifies every quarantine on the list, the first time that it is called: before a report of leaks, which may end the process,
/// else at the exit itself.
pub(crate) extern "C" fn verify_once() {
    static DONE: AtomicBool = AtomicBool::new(false);
    // Relaxed: one thread runs what `exit` runs.
    if DONE.swap(true, Relaxed) {
        return;
    }
    verify_quarantines();
}

/// Verifies every freed block that the quarantines of this process hold, now: what was written to one is found at once, and not
/// when the block leaves. Each violation goes to its hooks' handler.
///
/// Where the allocator below needs a lock that its callers hold, so does this.
pub fn verify_quarantines() {
    for place in lock().iter().flatten() {
        // SAFETY: on the list, so not dropped: `drop` takes the lock first.
        let quarantine = unsafe { place.0.as_ref() };
        quarantine.verify_all();
    }
}
