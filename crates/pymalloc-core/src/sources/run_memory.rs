//! Owns the span of memory in which the process's large blocks lie, its lock, and when what is free there goes back to the system. Leaves
//! to `runs.rs` which block is where, and to its callers when a period ends.
//!
//! ```text
//!  behind the region, where nothing else is put
//!  v
//!  | slots, mapped in steps - - >| span, mapped in steps - - - - - - - - - - - - - - - ->|
//! ```

use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

use malloc_api::page_bytes;
use pymem_sync::{ForkLock, Lock, LockGuard, Rank};

use crate::checks::hardened::{self, Misuse};
use crate::config::{REGION_BYTES_MAX, RUN_GROWN_MAX};
use crate::policy::{
    RUNS_BESIDE_GROWTH_BYTES, RUNS_GROWING_BYTES, RUNS_KEPT_MIN_BYTES, RUNS_UNMAPPED_BYTES,
};
use crate::run_slots::{SLOT_BYTES, Slot};
use crate::runs::{Run, Runs};
use crate::sources::mmap;
use crate::stats::LargeRunsStats;

/// Bytes that the span can grow to.
const SPAN_BYTES_MAX: usize = REGION_BYTES_MAX / 4;

/// Bytes by which the span grows.
const STEP_BYTES: usize = 1 << 20;

/// Bytes of the span for which slots are mapped together, in whole pages of any system.
const SLOTS_STEP_BYTES: usize = 64 << 20;

/// Bytes of the slots of so many bytes of the span.
const fn slots_bytes(span_bytes: usize) -> usize {
    span_bytes / SLOT_BYTES * size_of::<Slot>()
}

struct RunMemory {
    runs: Runs,
    /// Bytes that were touched first since the process's peak was looked at.
    grown: usize,
    /// The most bytes that the process had resident when free runs last gave way.
    peak: usize,
    /// Where the table of slots begins.
    slots_start: usize,
    /// Bytes of the span for which there are slots.
    slots_end: usize,
    /// Whether somebody was told that free memory waits to go back.
    is_waiting: bool,
}

static MEMORY: Lock<RunMemory> = Lock::new(RunMemory {
    runs: Runs::new(),
    grown: 0,
    peak: 0,
    slots_start: 0,
    slots_end: 0,
    is_waiting: false,
});

/// To be registered before the purger's thread, which takes the lock: a forking thread takes it later.
pub(crate) static OVER_FORKS: ForkLock = ForkLock::new(Rank::Memory, &MEMORY);

/// Where the span begins, 0 before it has a place; and its bytes.
///
/// Relaxed: whoever has a block of the span has had the lock since they were written, or hears of the block from one who has.
static BASE: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicUsize = AtomicUsize::new(0);

/// The address so many bytes behind the span's start.
fn at(offset: usize) -> Option<NonNull<u8>> {
    NonNull::new(core::ptr::with_exposed_provenance_mut(BASE.load(Ordering::Relaxed) + offset))
}

/// How far behind the span's start `block` is; `None` for other blocks.
#[inline]
pub(crate) fn offset_of(block: NonNull<u8>) -> Option<usize> {
    let offset = block.addr().get().wrapping_sub(BASE.load(Ordering::Relaxed));
    (offset < BYTES.load(Ordering::Relaxed)).then_some(offset)
}

/// A block of `size` bytes, `RUN_MAX` at most, and whether it reads as zero; one that `grows` lies behind all others where it is long.
/// `None` without memory, and before there is a [place](begin).
#[inline]
pub(crate) fn take(size: usize, grows: bool) -> Option<(NonNull<u8>, bool)> {
    let mut memory = MEMORY.lock();
    let is_last = grows && size >= RUNS_GROWING_BYTES;
    let run = match memory.take(size, is_last) {
        None => {
            memory.grow(size)?;
            memory.take(size, is_last)?
        }
        Some(run) => run,
    };
    Some((at(run.offset)?, run.is_fresh))
}

/// Whether the span has a place.
pub(crate) fn has_begun() -> bool {
    BASE.load(Ordering::Relaxed) > 0
}

/// Says where the process's region begins: the span lies behind it. Nobody who calls this has the region's lock, which a fork takes before.
#[cold]
pub(crate) fn begin(region: NonNull<u8>) {
    let start = region.addr().get() + REGION_BYTES_MAX;
    MEMORY.lock().slots_start = start;
    BASE.store(start + slots_bytes(SPAN_BYTES_MAX), Ordering::Relaxed);
}

/// Gives the block at `offset` back. Returns how many bytes are free and resident, where nobody was told since there were none, or `is_late`
/// says that it is time to. Ends the process where no block in use begins there.
///
/// # Safety
///
/// 1. The block is not used afterwards.
pub(crate) unsafe fn give(offset: usize, is_late: impl Fn(usize) -> bool) -> Option<usize> {
    let mut memory = MEMORY.lock();
    if !memory.runs.give(offset) {
        misused(memory, offset);
    }
    let spare = memory.runs.resident_bytes();
    let kept = memory.runs.used_bytes().max(RUNS_KEPT_MIN_BYTES);
    if spare > kept {
        memory.give_back(kept / 4 * 3);
    }
    let was_told = core::mem::replace(&mut memory.is_waiting, true);
    drop(memory);
    (!was_told || is_late(spare)).then_some(spare)
}

/// Makes the block at `offset` one of `size` bytes where it is; else `Err` with how many it has. Ends the process where no block in use
/// begins there.
///
/// # Safety
///
/// 1. The block is the caller's alone.
pub(crate) unsafe fn resize(offset: usize, size: usize) -> Result<(), usize> {
    let mut memory = MEMORY.lock();
    let Some(bytes) = memory.runs.bytes_of(offset) else {
        misused(memory, offset);
    };
    if size > RUN_GROWN_MAX {
        return Err(bytes);
    }
    if size > bytes && memory.runs.is_last(offset) {
        memory.note_growth(size - bytes);
        let _ = memory.grow(size - bytes);
    }
    if memory.runs.resize(offset, size) { Ok(()) } else { Err(bytes) }
}

/// Reports that no block in use begins at `offset`, and aborts.
#[cold]
#[inline(never)]
fn misused(mut memory: LockGuard<'_, RunMemory>, offset: usize) -> ! {
    let is_inside = memory.runs.is_used(offset);
    // A handler of the signal may ask for memory.
    drop(memory);
    let misuse = if is_inside { Misuse::NotABlock } else { Misuse::DoubleFree };
    hardened::fatal(misuse, at(offset).unwrap_or(NonNull::dangling()))
}

/// Gives free runs back, but for a few, where the process's peak has grown: it is about to hold more.
pub(crate) fn make_room() {
    if BYTES.load(Ordering::Relaxed) > 0 {
        MEMORY.lock().make_room();
    }
}

/// Gives all that is free back; returns how many bytes.
pub(crate) fn release() -> usize {
    let mut memory = MEMORY.lock();
    let before = memory.runs.resident_bytes();
    memory.runs.purge_to(0, purge);
    memory.unmap_beyond(0);
    before - memory.runs.resident_bytes()
}

/// Gives back what has been free for a period; returns whether free memory is left.
pub(crate) fn end_period() -> bool {
    let mut memory = MEMORY.lock();
    memory.is_waiting = memory.runs.end_period(purge);
    memory.unmap_beyond(RUNS_UNMAPPED_BYTES);
    memory.is_waiting
}

/// Checks the invariants.
pub(crate) fn check() {
    MEMORY.lock().runs.check();
}

/// Counts as of now.
pub(crate) fn stats() -> LargeRunsStats {
    let mut memory = MEMORY.lock();
    let used_bytes = memory.runs.used_bytes();
    LargeRunsStats {
        blocks: memory.runs.count(),
        used_bytes,
        free_bytes: memory.runs.end_bytes().saturating_sub(SLOT_BYTES + used_bytes),
        free_resident_bytes: memory.runs.resident_bytes(),
    }
}

impl RunMemory {
    #[inline]
    fn take(&mut self, size: usize, is_last: bool) -> Option<Run> {
        let run = if is_last { self.runs.take_last(size) } else { self.runs.take(size) };
        if run.is_some_and(|run| run.is_fresh) {
            self.note_growth(size);
        }
        run
    }

    /// Has the span end `bytes` behind its last run at least; `None` without memory.
    fn grow(&mut self, bytes: usize) -> Option<()> {
        while self.runs.end_bytes() < self.runs.top_bytes() + bytes {
            self.map_step()?;
        }
        Some(())
    }

    /// Maps the next step of the span, and slots for it; `None` without memory.
    fn map_step(&mut self) -> Option<()> {
        let end = self.runs.end_bytes();
        if end >= SPAN_BYTES_MAX || self.slots_start == 0 {
            return None;
        }
        let base = self.slots_start + slots_bytes(SPAN_BYTES_MAX);
        // Slots stay when the span shrinks.
        if end >= self.slots_end {
            let slots =
                mmap::map_at(self.slots_start + slots_bytes(end), slots_bytes(SLOTS_STEP_BYTES))?;
            let _ = slots.as_ptr().expose_provenance();
            self.slots_end = end + SLOTS_STEP_BYTES;
        }
        let step = mmap::map_at(base + end, STEP_BYTES)?;
        let _ = step.as_ptr().expose_provenance();
        BYTES.store(end + STEP_BYTES, Ordering::Relaxed);
        let slots = core::ptr::with_exposed_provenance_mut(self.slots_start);
        // SAFETY: 1: mapped above or earlier, zero when fresh.
        unsafe { self.runs.set_end(slots, end + STEP_BYTES, page_bytes()) };
        Some(())
    }

    /// Notes that `bytes` without memory are about to be touched.
    fn note_growth(&mut self, bytes: usize) {
        self.grown += bytes;
        if self.grown >= RUNS_BESIDE_GROWTH_BYTES {
            self.grown = 0;
            self.make_room();
        }
    }

    fn make_room(&mut self) {
        if self.runs.resident_bytes() > RUNS_BESIDE_GROWTH_BYTES {
            let peak = mmap::peak_bytes();
            if peak > core::mem::replace(&mut self.peak, peak) {
                self.give_back(RUNS_BESIDE_GROWTH_BYTES);
            }
        }
    }

    /// Gives free memory back until `target` bytes are left.
    #[cold]
    fn give_back(&mut self, target: usize) {
        self.runs.purge_to(target, purge);
        self.unmap_beyond(RUNS_UNMAPPED_BYTES);
    }

    /// Unmaps the end of the span where that is free and without memory, if it is more than `bytes`.
    fn unmap_beyond(&mut self, bytes: usize) {
        let end = self.runs.end_bytes();
        let needed = self.runs.touched_bytes().next_multiple_of(STEP_BYTES);
        if end <= needed + bytes {
            return;
        }
        let Some(start) = at(needed) else { return };
        // SAFETY: 1: whole steps, of which nothing is in use.
        if unsafe { mmap::unmap(start, end - needed) } {
            BYTES.store(needed, Ordering::Relaxed);
            self.runs.cut(needed);
            // Slots without a run may be zero.
            let slots = self.slots_start + slots_bytes(needed);
            if let Some(slots) = NonNull::new(core::ptr::with_exposed_provenance_mut(slots)) {
                // SAFETY: 1: a part of the table, which is private anonymous memory.
                unsafe { mmap::purge(slots, slots_bytes(end - needed)) };
            }
        }
    }
}

/// Drops the whole pages of a free range of the span; do they read as zero next?
fn purge(offset: usize, bytes: usize) -> bool {
    // SAFETY: 1: a free range of the span, which is private anonymous memory.
    at(offset).is_some_and(|start| unsafe { mmap::purge(start, bytes) } > 0)
}
