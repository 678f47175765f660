//! Owns `release`: giving memory back to the system now, instead of when mimalloc's timers say so.

use malloc_api::ReleaseLevel;

use crate::ffi;
use crate::heap_kind::HeapKind;
use crate::interpreter::InterpreterHeaps;
use crate::registry;
use crate::thread::ThreadHeaps;
use crate::world::{Stopped, World};

/// Whether to collect by force: each page without a block goes back, and every free byte of the process's arenas with it.
///
/// Below [`ReleaseLevel::Pages`], what goes is what mimalloc's timers say, and pages that have been empty for a while: its
/// arenas and pages have no counterpart of the other two levels.
fn is_forced(level: ReleaseLevel) -> bool {
    level == ReleaseLevel::Pages
}

impl ThreadHeaps {
    /// Gives memory back to the system, and returns how many bytes.
    ///
    /// At [`ReleaseLevel::Pages`] every page without a block goes back; below that, what mimalloc's timers say is due.
    /// Collects the calling thread's heaps alone: empty pages that other threads keep are theirs to release, or
    /// [`InterpreterHeaps::release`]'s. Freed memory in mimalloc's arenas is the process's, so it goes back whoever freed it.
    pub fn release(&self, level: ReleaseLevel) -> usize {
        if is_forced(level) {
            self.flush_delayed();
        }
        measured(|| {
            for kind in HeapKind::ALL {
                // SAFETY: (1) the calling thread owns the heap.
                unsafe { self.heap(kind).collect(is_forced(level)) };
            }
            collect_default(level);
        })
    }
}

impl InterpreterHeaps {
    /// Gives memory of every thread's heaps back to the system, and returns how many bytes; stops the world meanwhile.
    ///
    /// At [`ReleaseLevel::Pages`], blocks that wait for a delayed free are freed before, and empty heaps without an owner are deleted
    /// after: one heap's records take some 200 KiB.
    pub fn release<W: World + ?Sized>(&self, world: &W, level: ReleaseLevel) -> usize {
        if is_forced(level) {
            self.reclaim_delayed(world);
        }
        let _stopped = Stopped::stop(world);
        measured(|| {
            let mut registry = registry::lock();
            for set in registry.sets().filter(|set| set.interpreter() == self.id()) {
                for (_, heap) in set.heaps() {
                    // SAFETY: (1) the owner is stopped, or is the caller.
                    unsafe { heap.collect(is_forced(level)) };
                    if is_forced(level) {
                        // SAFETY: (1) the world is stopped.
                        unsafe { heap.delete_if_empty(&mut registry) };
                    }
                }
            }
            drop(registry);
            collect_default(level);
        })
    }
}

/// Collects the calling thread's default heap, and purges the process's arenas.
fn collect_default(level: ReleaseLevel) {
    // SAFETY: no preconditions.
    unsafe { ffi::mi_collect(is_forced(level)) };
}

/// Runs `work` and returns how many bytes mimalloc has given back to the system meanwhile, through any thread.
fn measured(work: impl FnOnce()) -> usize {
    let before = purged_bytes();
    work();
    usize::try_from(purged_bytes() - before).unwrap_or_default()
}

/// Bytes that mimalloc has ever given back to the system.
fn purged_bytes() -> i64 {
    let mut stats = ffi::Stats::new();
    let _registry = registry::lock();
    // SAFETY: a structure of the size and version that mimalloc checks; the registry's lock keeps a fork out of its locks.
    unsafe { ffi::mi_stats_get(&raw mut stats) };
    stats.purged
}
