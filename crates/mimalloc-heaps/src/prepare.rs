//! Owns what must be done once before a heap is used: the version compared, an option set, and the locks held over forks.

use core::sync::atomic::{AtomicBool, Ordering};

use crate::registry::{self, HeapError};
use crate::{ffi, idle, mutexes, purge_mark};

/// Set by the negative control alone.
static WITHOUT_HANDLERS: AtomicBool = AtomicBool::new(false);

/// Lets heaps be used without fork handlers, to see that the fork test then fails. Before the first heap.
#[doc(hidden)]
pub fn control_without_fork_handlers() {
    WITHOUT_HANDLERS.store(true, Ordering::Relaxed);
}

/// Has a child of any fork from now on find mimalloc's own mutexes unlocked and give memory back, and the thread that does so end before
/// each fork. Starts mimalloc as [`start`](crate::start) does.
///
/// Heaps of this crate do that themselves; for [`MiMalloc`](crate::MiMalloc) alone it is called before a second thread allocates.
///
/// # Errors
///
/// [`HeapError::Version`] and [`HeapError::ForkHandlers`].
pub fn hold_over_forks() -> Result<(), HeapError> {
    ffi::start();
    let found = ffi::linked_version();
    if found != ffi::SUPPORTED_VERSION {
        return Err(HeapError::Version { found, expected: ffi::SUPPORTED_VERSION });
    }
    pymem_sync::hold_over_forks(&mutexes::OF_THREADS)
        .and_then(|()| pymem_sync::hold_over_forks(&purge_mark::OVER_FORKS))
        .and_then(|()| idle::stop_before_forks())
        .map_err(|errno| HeapError::ForkHandlers { errno })
}

/// Prepares the process: checks mimalloc's version, sets its options and has the lock held over forks. Before [`lock`](registry::lock).
pub(crate) fn prepare() -> Result<(), HeapError> {
    ffi::start();
    if !WITHOUT_HANDLERS.load(Ordering::Relaxed) {
        hold_over_forks()?;
        let held = pymem_sync::hold_over_forks(&mutexes::OF_HEAPS);
        held.map_err(|errno| HeapError::ForkHandlers { errno })?;
    }
    let _registry = registry::lock();
    // SAFETY: an option of 3.3.2; takes effect for pages that are made from now on.
    unsafe { ffi::mi_option_set(ffi::MI_OPTION_VISIT_ABANDONED, 1) };
    Ok(())
}
