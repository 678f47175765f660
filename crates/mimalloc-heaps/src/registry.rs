//! Owns the one lock of the crate, what must be done once before it is first taken, and [`HeapError`].
//!
//! The lock is held around each call that takes one of mimalloc's own locks (heaps and theaps made and freed, threads that
//! start and end), and over a fork, so that no child inherits one of them taken. mimalloc has no fork handlers. One lock is not
//! covered: the lock that mimalloc takes to ask the system for a new arena. Nothing under the lock allocates through Rust's
//! global allocator, which may be one of ours.

use core::sync::atomic::{AtomicBool, Ordering};

use pymem_sync::{ForkLock, Lock, LockGuard, Rank, hold_over_forks};

use crate::ffi;
use crate::idle;

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

/// Has the thread that gives memory back end before every fork, from now on.
///
/// Without this call that begins when the thread first starts, for which no handler of a fork may be the reason.
///
/// # Errors
///
/// [`HeapError::ForkHandlers`].
pub fn stop_background_thread_before_forks() -> Result<(), HeapError> {
    idle::stop_before_forks().map_err(|errno| HeapError::ForkHandlers { errno })
}

/// Prepares the process: checks mimalloc's version, sets its options and has the lock held over forks. Before [`lock`].
pub(crate) fn prepare() -> Result<(), HeapError> {
    start();
    let found = ffi::linked_version();
    if found != ffi::SUPPORTED_VERSION {
        return Err(HeapError::Version { found, expected: ffi::SUPPORTED_VERSION });
    }
    if !WITHOUT_HANDLERS.load(Ordering::Relaxed) {
        stop_background_thread_before_forks()?;
        hold_over_forks(&HELD_OVER_FORKS).map_err(|errno| HeapError::ForkHandlers { errno })?;
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
