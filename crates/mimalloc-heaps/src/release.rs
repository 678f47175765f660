//! Owns the release of memory: giving it back to the system now, instead of when mimalloc's timers say so.

use malloc_api::ReleaseLevel;

use crate::ffi;
use crate::heap_set::HeapSet;
use crate::registry;
use crate::world::{Stopped, World};

/// Whether to collect by force: each page without a block goes back, and every free byte of the process's arenas with it.
///
/// The levels below [`ReleaseLevel::Pages`] are one: what mimalloc's timers say goes back, and pages that have been empty for a
/// while. mimalloc's arenas and pages have no counterpart of those levels.
pub(crate) fn is_forced(level: ReleaseLevel) -> bool {
    level == ReleaseLevel::Pages
}

/// Gives back what the heaps of `set` keep, and returns how many bytes.
///
/// # Safety
///
/// 1. The calling thread owns `set`.
pub(crate) unsafe fn own(set: &HeapSet, level: ReleaseLevel) -> usize {
    measured(|| {
        for (_, heap) in set.heaps() {
            // SAFETY: (1) is the same there.
            unsafe { heap.collect(is_forced(level)) };
        }
        collect_default(level);
    })
}

/// Gives back what the heaps of the interpreter with this number keep, and returns how many bytes.
pub(crate) fn all<W: World + ?Sized>(
    _stopped: &Stopped<'_, W>,
    interpreter: u64,
    level: ReleaseLevel,
) -> usize {
    measured(|| {
        let mut registry = registry::lock();
        for set in HeapSet::all(&registry).filter(|set| set.interpreter() == interpreter) {
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
