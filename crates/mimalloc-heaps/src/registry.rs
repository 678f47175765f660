//! Owns the one lock of the crate, and [`HeapError`]. Leaves to `prepare.rs` what must be done once before it is first taken.
//!
//! The lock is held around each call that takes one of mimalloc's own locks for a heap of this crate (heaps and theaps made and
//! freed, attached threads that end), and over a fork, so that no child inherits one of them taken. What threads take without it,
//! `mutexes.rs` holds. Nothing under the lock allocates through Rust's global allocator, which may be one of ours.

use pymem_sync::{Lock, LockGuard};

use crate::ffi;

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

pub(crate) static REGISTRY: Lock<Registry> =
    Lock::new(Registry { last_owner: NOBODY, last_interpreter: NOBODY });

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
