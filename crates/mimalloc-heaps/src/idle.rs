//! Owns memory of mimalloc's arenas that waits to be given back, in a process that makes no further call. Leaves the thread that sees to
//! it to `pymem_sync::IdleThread`.
//!
//! What is free in an arena, mimalloc gives back after a second, but it looks only once in ten thousand slow calls of a thread. Any
//! thread may look, as arenas are shared: each range is taken out of those that are free while its memory goes. So the frees that may
//! leave a page to its arena say how much that is, and from a few MiB on the thread looks for them. What heaps keep for themselves, a
//! page or two of a size, is their threads'.

use core::cell::Cell;
use core::sync::atomic::{AtomicUsize, Ordering};

use pymem_sync::{ForkLock, IdleMemory, IdleThread, IdleUnits, Keeper, Rank};

use crate::ffi;

/// Length of a period in seconds: the thread looks when one has passed at least, and two at most. Longer than mimalloc's second.
const SECONDS: u32 = 2;

/// Bytes that wait before a thread watches over them: a small program needs none.
const AFTER_BYTES: usize = 2 << 20;

/// Bytes that a thread counts for itself, so that threads seldom meet at the sum.
const AT_ONCE_BYTES: usize = 256 << 10;

/// Blocks from this size on have a page alone, or with few others.
const LARGE_BYTES: usize = 64 << 10;

/// One unit, which stands for all that waits in any arena.
static WAITS: [IdleUnits; 1] = [IdleUnits::new()];
static THREAD: IdleThread = IdleThread::new(&Arenas, &OVER_FORKS, SECONDS);
static OVER_FORKS: ForkLock = ForkLock::new(Rank::Memory, &THREAD);

/// Bytes that were freed since the last period.
static FREED: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Bytes that the thread has freed, and that are not in `FREED` yet. No destructor.
    static UNCOUNTED: Cell<usize> = const { Cell::new(0) };
}

/// Whether a thread may give back what has been free for a second, from now on and for the whole process; at first it may.
///
/// The thread starts when some MiB are free, looks every two seconds, and ends when it finds nothing more; before a fork it ends at once.
/// Without it, memory goes back in later calls, and stays in a process that makes none.
pub fn allow_background_thread(is_allowed: bool) {
    THREAD.allow(is_allowed);
}

/// Has the thread end before every fork, from now on.
///
/// # Errors
///
/// As [`IdleThread::stop_before_forks`].
pub(crate) fn stop_before_forks() -> Result<(), i32> {
    THREAD.stop_before_forks()
}

/// Notes that the calling thread has freed the last block of a page, of these bytes, or some block of a page that is not its own.
#[inline]
pub(crate) fn note_freed(bytes: usize) {
    // Nothing waits that mimalloc would give back.
    if ffi::purge_expires().load(Ordering::Relaxed) == 0 {
        return;
    }
    let bytes = UNCOUNTED.get() + bytes;
    UNCOUNTED.set(bytes);
    if bytes >= AT_ONCE_BYTES {
        count();
    }
}

/// Notes that a block with room for these bytes may have moved.
#[inline]
pub(crate) fn note_moved(room: usize) {
    // Small blocks leave their page to others.
    if room >= LARGE_BYTES {
        note_freed(room);
    }
}

/// Adds what the calling thread has freed to what all have, and lets it go back after a while.
#[cold]
#[inline(never)]
pub(crate) fn count() {
    let bytes = UNCOUNTED.take();
    let freed = FREED.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
    let [waits] = &WAITS;
    if (freed >= AFTER_BYTES || THREAD.keeper().is_awake()) && !waits.offer(1, THREAD.keeper()) {
        // Where there may be no thread, mimalloc's own look has to do.
        THREAD.start();
    }
}

/// What the thread gives back.
struct Arenas;

impl IdleMemory for Arenas {
    fn units(&self) -> &[IdleUnits] {
        &WAITS
    }

    fn end_period(&self, keeper: &Keeper) {
        FREED.store(0, Ordering::Relaxed);
        let [waits] = &WAITS;
        waits.give_back(keeper, |_| ffi::purge_expired());
    }
}
