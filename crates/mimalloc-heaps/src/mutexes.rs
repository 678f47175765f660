//! Owns mimalloc's mutexes that a thread takes without the registry's lock: holding them over each fork.
//!
//! A thread's first block and its end, on whatever thread, put its theap on the list of the main heap and take it off; a block
//! that no arena has room for reserves a new arena, whose first page the main heap then records. mimalloc has no fork handlers.

use pymem_sync::{ForkLock, HeldOverFork, Rank};

use crate::ffi;

pub(crate) static OVER_FORKS: ForkLock = ForkLock::new(Rank::Memory, &Mutexes);

/// Those of [`ffi::own_mutexes`], in their order: no holder of one waits for one before it.
struct Mutexes;

impl HeldOverFork for Mutexes {
    fn hold(&self) {
        for mutex in ffi::own_mutexes() {
            // SAFETY: a mutex of mimalloc's, which was initialised when mimalloc started and never ends.
            unsafe { libc::pthread_mutex_lock(mutex.as_ptr()) };
        }
    }

    unsafe fn release(&self) {
        for mutex in ffi::own_mutexes().into_iter().rev() {
            // SAFETY: as above, and held by this thread, or in a child by the one that it continues (1).
            unsafe { libc::pthread_mutex_unlock(mutex.as_ptr()) };
        }
    }
}
