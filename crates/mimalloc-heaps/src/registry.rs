//! Owns the one lock of the crate, and what it guards: every heap set and every interpreter of the process.
//!
//! The lock is held around each call that takes one of mimalloc's own locks (heaps and theaps made and freed, threads that
//! start and end), and `fork.rs` holds it across a fork, so that no child inherits one of them taken. Nothing under it
//! allocates through Rust's global allocator, which may be one of ours.

use core::sync::atomic::{AtomicBool, Ordering};

use pymem_sync::{Lock, LockGuard};

use crate::adopt::HeapSet;
use crate::interpreter::Interpreter;
use crate::{HeapError, ffi, fork};

/// What exists, in lists that only grow.
#[derive(Debug)]
pub(crate) struct Registry {
    sets: Option<&'static HeapSet>,
    interpreters: Option<&'static Interpreter>,
    last_thread: u64,
    last_interpreter: u64,
}

static REGISTRY: Lock<Registry> =
    Lock::new(Registry { sets: None, interpreters: None, last_thread: 0, last_interpreter: 0 });

/// Set once, under the lock.
static IS_READY: AtomicBool = AtomicBool::new(false);

/// The lock itself, for the fork handlers.
pub(crate) fn raw() -> &'static pymem_sync::RawLock {
    REGISTRY.raw()
}

/// Waits for the lock.
pub(crate) fn lock() -> LockGuard<'static, Registry> {
    REGISTRY.lock()
}

/// Prepares the process: checks mimalloc's version, sets its options and registers the fork handlers, once.
pub(crate) fn prepare() -> Result<(), HeapError> {
    if IS_READY.load(Ordering::Relaxed) {
        return Ok(());
    }
    let found = ffi::linked_version();
    if found != ffi::SUPPORTED_VERSION {
        return Err(HeapError::Version { found, expected: ffi::SUPPORTED_VERSION });
    }
    let _registry = lock();
    if !IS_READY.load(Ordering::Relaxed) {
        // SAFETY: an option of 3.3.2; takes effect for pages that are made from now on.
        unsafe { ffi::mi_option_set(ffi::MI_OPTION_VISIT_ABANDONED, 1) };
        fork::register_handlers()?;
        IS_READY.store(true, Ordering::Relaxed);
    }
    Ok(())
}

impl Registry {
    /// A number that no other thread has.
    pub(crate) fn next_thread(&mut self) -> u64 {
        self.last_thread += 1;
        self.last_thread
    }

    /// A number that no other interpreter has.
    pub(crate) fn next_interpreter(&mut self) -> u64 {
        self.last_interpreter += 1;
        self.last_interpreter
    }

    /// The set that was added last; links to the one before.
    pub(crate) fn first_set(&self) -> Option<&'static HeapSet> {
        self.sets
    }

    /// Adds a set, which already links to the first one, for ever.
    pub(crate) fn add_set(&mut self, set: &'static HeapSet) {
        self.sets = Some(set);
    }

    /// Every set, of any interpreter, newest first.
    pub(crate) fn sets(&self) -> impl Iterator<Item = &'static HeapSet> + use<> {
        core::iter::successors(self.sets, |set| set.next())
    }

    /// The interpreter that was added last; links to the one before.
    pub(crate) fn first_interpreter(&self) -> Option<&'static Interpreter> {
        self.interpreters
    }

    /// Adds an interpreter, which already links to the first one, for ever.
    pub(crate) fn add_interpreter(&mut self, interpreter: &'static Interpreter) {
        self.interpreters = Some(interpreter);
    }

    /// Every interpreter, live or ended, newest first.
    pub(crate) fn interpreters(&self) -> impl Iterator<Item = &'static Interpreter> + use<> {
        core::iter::successors(self.interpreters, |interpreter| interpreter.next())
    }
}
