//! Owns the one lock of the crate, what must be done once before it is first taken, and [`HeapError`].
//!
//! The lock is held around each call that takes one of mimalloc's own locks for a heap of this crate (heaps and theaps made and
//! freed, attached threads that end), and over a fork, so that no child inherits one of them taken. What threads without such a
//! heap take, `mutexes.rs` holds. Nothing under the lock allocates through Rust's global allocator, which may be one of ours.

use core::sync::atomic::{AtomicBool, Ordering};

use pymem_sync::{ForkLock, Lock, LockGuard, Rank};

use crate::{ffi, idle, mutexes};

/// Why a thread or an interpreter could not get its heaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeapError {
    /// Another mimalloc is linked than the one whose internals this crate uses.
    #[error(
        "the linked mimalloc calls itself {found}, but these heaps rely on internals of {expected}; link the mimalloc that libmimalloc-sys 0.1.49 bundles"
    )]
    Version {
        /// What the linked library says, as 10000 * major + 100 * minor + patch.
        found: i32,
        /// The version that this crate was written for.
        expected: i32,
    },
    /// There was no memory for the heaps or their records.
    #[error("no memory for a thread's heaps; free memory and attach again")]
    OutOfMemory,
    /// The calling thread has heaps of this interpreter already.
    #[error(
        "this thread is attached to the interpreter already; use its first `ThreadHeaps`, or drop them before attaching again"
    )]
    AlreadyAttached,
    /// The system refused the fork handlers.
    #[error(
        "pthread_atfork failed with error {errno}; without it a child could inherit a locked heap list: free memory and try again"
    )]
    ForkHandlers {
        /// The error number that `pthread_atfork` returned.
        errno: i32,
    },
}

/// No owner or interpreter has this number.
pub(crate) const NOBODY: u64 = 0;

/// The numbers given so far; with `&mut Registry` a function asks that the lock is held.
#[derive(Debug)]
pub(crate) struct Registry {
    last_owner: u64,
    last_interpreter: u64,
}

static REGISTRY: Lock<Registry> =
    Lock::new(Registry { last_owner: NOBODY, last_interpreter: NOBODY });
static HELD_OVER_FORKS: ForkLock = ForkLock::new(Rank::Allocator, &REGISTRY);

/// Set by the negative control alone.
static WITHOUT_HANDLERS: AtomicBool = AtomicBool::new(false);

/// Lets heaps be used without fork handlers, to see that the fork test then fails. Before the first heap.
#[doc(hidden)]
pub fn control_without_fork_handlers() {
    WITHOUT_HANDLERS.store(true, Ordering::Relaxed);
}

/// Waits for the lock.
pub(crate) fn lock() -> LockGuard<'static, Registry> {
    REGISTRY.lock()
}

/// Starts mimalloc, where nothing has: a program whose linker leaves mimalloc's constructor out pays for mimalloc when it uses it alone.
///
/// Heaps of this crate do that themselves. After options that concern the start, before any other use of mimalloc, and from any thread.
pub fn start() {
    ffi::start();
}

/// Has a child of any fork from now on find mimalloc's own mutexes unlocked, and the thread that gives memory back end before each
/// fork. Starts mimalloc as [`start`] does.
///
/// Heaps of this crate do that themselves; for [`MiMalloc`](crate::MiMalloc) alone it is called before a second thread allocates.
///
/// # Errors
///
/// [`HeapError::Version`] and [`HeapError::ForkHandlers`].
pub fn hold_over_forks() -> Result<(), HeapError> {
    start();
    let found = ffi::linked_version();
    if found != ffi::SUPPORTED_VERSION {
        return Err(HeapError::Version { found, expected: ffi::SUPPORTED_VERSION });
    }
    let held = pymem_sync::hold_over_forks(&mutexes::OVER_FORKS);
    held.and_then(|()| idle::stop_before_forks()).map_err(|errno| HeapError::ForkHandlers { errno })
}

/// Prepares the process: checks mimalloc's version, sets its options and has the lock held over forks. Before [`lock`].
pub(crate) fn prepare() -> Result<(), HeapError> {
    start();
    if !WITHOUT_HANDLERS.load(Ordering::Relaxed) {
        hold_over_forks()?;
        let held = pymem_sync::hold_over_forks(&HELD_OVER_FORKS);
        held.map_err(|errno| HeapError::ForkHandlers { errno })?;
    }
    let _registry = lock();
    // SAFETY: an option of 3.3.2; takes effect for pages that are made from now on.
    unsafe { ffi::mi_option_set(ffi::MI_OPTION_VISIT_ABANDONED, 1) };
    Ok(())
}

impl Registry {
    /// A number that no other owner of a heap set has.
    pub(crate) fn next_owner(&mut self) -> u64 {
        self.last_owner += 1;
        self.last_owner
    }

    /// A number that no other interpreter has.
    pub(crate) fn next_interpreter(&mut self) -> u64 {
        self.last_interpreter += 1;
        self.last_interpreter
    }
}
