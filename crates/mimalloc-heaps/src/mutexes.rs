//! Owns what of mimalloc's mutexes is held over each fork, as mimalloc has no fork handlers.
//!
//! A thread's first block and its end, on whatever thread, put its theap on the list of the main heap and take it off; a block
//! that no arena has room for reserves a new arena, whose first page the main heap then records. A page outside the arenas
//! comes onto its heap's list when it is given up, and leaves it when any thread frees into it. All else is done under the
//! registry's lock.

use core::ptr::NonNull;

use pymem_sync::{ForkLock, HeldOverFork, Rank};

use crate::ffi;
use crate::heap_set::HeapSet;
use crate::registry::REGISTRY;

/// What a thread may take that has no heap of this crate.
pub(crate) static OF_THREADS: ForkLock = ForkLock::new(Rank::Memory, &Threads);

/// The registry's lock, and what threads take of the heaps in it without that lock.
pub(crate) static OF_HEAPS: ForkLock = ForkLock::new(Rank::Allocator, &Heaps);

/// # Safety
///
/// 1. A mutex that was initialised, and is not destroyed meanwhile.
unsafe fn lock(mutex: NonNull<libc::pthread_mutex_t>) {
    // SAFETY: (1).
    unsafe { libc::pthread_mutex_lock(mutex.as_ptr()) };
}

/// # Safety
///
/// 1. The calling thread [took](lock) the mutex, or in a forked child the thread that it continues.
unsafe fn unlock(mutex: NonNull<libc::pthread_mutex_t>) {
    // SAFETY: (1).
    unsafe { libc::pthread_mutex_unlock(mutex.as_ptr()) };
}

/// Those of [`ffi::own_mutexes`], in their order: no holder of one waits for one before it.
struct Threads;

impl HeldOverFork for Threads {
    fn hold(&self) {
        for mutex in ffi::own_mutexes() {
            // SAFETY: (1) it was initialised when mimalloc started, and never ends.
            unsafe { lock(mutex) };
        }
    }

    unsafe fn release(&self) {
        for mutex in ffi::own_mutexes().into_iter().rev() {
            // SAFETY: (1) taken by `hold` (1).
            unsafe { unlock(mutex) };
        }
    }
}

/// The registry's lock, and the mutex of each heap of a set: its holder waits for nothing. Other mutexes of a heap are taken by its
/// owner, or under the registry's lock.
struct Heaps;

/// The mutex of each heap's list of pages outside the arenas.
///
/// # Safety
///
/// 1. The registry's lock is held for the calling thread while the result is used.
unsafe fn of_sets() -> impl Iterator<Item = NonNull<libc::pthread_mutex_t>> {
    // SAFETY: held (1), so that nobody changes it.
    let registry = unsafe { &*REGISTRY.as_ptr() };
    let heaps = HeapSet::all(registry).flat_map(HeapSet::heaps);
    // SAFETY: (1) live, as heaps begin and end under the registry's lock.
    heaps.filter_map(|(_, heap)| heap.get()).map(|heap| unsafe { ffi::abandoned_mutex(heap) })
}

impl HeldOverFork for Heaps {
    fn hold(&self) {
        REGISTRY.hold();
        // SAFETY: (1) taken above.
        for mutex in unsafe { of_sets() } {
            // SAFETY: (1) a live heap's, which ends under the registry's lock alone.
            unsafe { lock(mutex) };
        }
    }

    unsafe fn release(&self) {
        // The same heaps: none came or went since `hold`.
        // SAFETY: (1) taken by `hold` (1).
        for mutex in unsafe { of_sets() } {
            // SAFETY: (1) taken by `hold` (1).
            unsafe { unlock(mutex) };
        }
        // SAFETY: (1) taken by `hold` (1).
        unsafe { REGISTRY.release() };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{RecvTimeoutError, channel};
    use std::time::Duration;

    use malloc_api::Malloc as _;
    use malloc_api::testing::alone;

    use super::*;
    use crate::{HeapKind, InterpreterHeaps, MiMalloc};

    /// A block outside the arenas, in a heap of a set, which another thread frees.
    #[test]
    fn a_page_of_any_set_stays_on_its_list_over_a_fork() {
        alone("mutexes::tests::a_page_of_any_set_stays_on_its_list_over_a_fork", || {
            let interpreter = InterpreterHeaps::new().unwrap();
            let heaps = interpreter.attach().unwrap();
            for kind in HeapKind::ALL {
                let block = || heaps.malloc_aligned(kind, 300_000, 128 << 10).unwrap();
                let blocks: Vec<_> =
                    (0..20).map(|_| block().as_ptr().expose_provenance()).collect();
                let (to_main, from_thread) = channel();
                Heaps.hold();
                let thread = std::thread::spawn(move || {
                    for address in blocks {
                        let block = std::ptr::with_exposed_provenance_mut::<u8>(address);
                        // SAFETY: (1) live and (2) not used afterwards.
                        unsafe { MiMalloc.free(NonNull::new(block)) };
                    }
                    to_main.send(()).unwrap();
                });
                let early = from_thread.recv_timeout(Duration::from_millis(200));
                // SAFETY: (1) taken above.
                unsafe { Heaps.release() };
                assert_eq!(early, Err(RecvTimeoutError::Timeout), "{kind}: nothing was held");
                assert_eq!(from_thread.recv_timeout(Duration::from_secs(60)), Ok(()), "{kind}");
                thread.join().unwrap();
            }
        });
    }
}
