//! Owns memory of the region that nobody needs at the moment: the memory stays for one period at least and for two at most, also
//! in a process that makes no further call. Leaves to `pymem_sync::IdleUnits` how owner and purger agree without a lock, and to
//! `pymem_sync::IdleThread` the thread that ends the periods.
//!
//! The thread starts when some allocator has a few MiB to spare. Where a thread is not allowed, the calls that offer memory end the
//! periods.

use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use pymem_sync::{ForkLock, IdleMemory, IdleThread, IdleUnits, Keeper, Rank, hold_over_forks};

use crate::config::{ARENA_SHIFT, ARENAS_MAX, POOL_BYTES, POOL_SHIFT};
use crate::header::beside_header;
use crate::policy::{IDLE_SECONDS, PURGER_AFTER_BYTES};
use crate::sources::{mmap, run_memory};

/// The first word has one unit: all free runs together, whose age `run_memory.rs` knows. The others are those of the arenas.
static IDLE: [IdleUnits; 1 + ARENAS_MAX] = [const { IdleUnits::new() }; 1 + ARENAS_MAX];
/// A bit for each arena that no allocator has: nothing in it is needed, the records included.
static DEAD: [AtomicU64; ARENAS_MAX / 64] = [const { AtomicU64::new(0) }; ARENAS_MAX / 64];
static THREAD: IdleThread = IdleThread::new(&IdleArenas, &OVER_FORKS, IDLE_SECONDS);
static OVER_FORKS: ForkLock = ForkLock::new(Rank::Memory, &THREAD);
/// Arenas from this one on have offered nothing yet.
static OFFERED: AtomicUsize = AtomicUsize::new(0);
/// Where the region begins, once it does.
static BASE: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());
/// When a call ended a period, in seconds of the system's clock.
static ENDED: AtomicUsize = AtomicUsize::new(0);

/// Says where the region begins.
pub(crate) fn begin(base: NonNull<u8>) {
    // Relaxed: whoever has an arena has had the region's lock.
    BASE.store(base.as_ptr(), Ordering::Relaxed);
}

/// Whether a thread may end the periods, from now on; one that runs ends by itself.
pub(crate) fn allow_thread(is_allowed: bool) {
    THREAD.allow(is_allowed);
}

/// Ends the thread before every fork.
///
/// # Errors
///
/// As [`IdleThread::stop_before_forks`].
pub(crate) fn stop_before_forks() -> Result<(), i32> {
    hold_over_forks(&run_memory::OVER_FORKS)?;
    THREAD.stop_before_forks()
}

/// The words of `arena`, and its number; `None` outside of the region.
fn idle_of(arena: NonNull<u8>) -> Option<(&'static IdleUnits, usize)> {
    let base = BASE.load(Ordering::Relaxed);
    let index = arena.addr().get().wrapping_sub(base.addr()) >> ARENA_SHIFT;
    Some((IDLE[1..].get(index).filter(|_| !base.is_null())?, index))
}

/// Lets `units` of `arena` go back after a while; their allocator has `spare_bytes` of such memory.
pub(crate) fn offer(arena: NonNull<u8>, units: u64, spare_bytes: usize) {
    let Some((idle, index)) = idle_of(arena) else { return };
    if OFFERED.load(Ordering::Relaxed) <= index {
        OFFERED.fetch_max(index + 1, Ordering::Relaxed);
    }
    if idle.offer(units, THREAD.keeper()) || spare_bytes < PURGER_AFTER_BYTES {
        return;
    }
    if !THREAD.start() {
        end_period_if_due();
    }
}

/// Lets free runs go back after a while, of which there are `spare_bytes` with memory.
#[cold]
pub(crate) fn offer_runs(spare_bytes: usize) {
    if !IDLE[0].offer(1, THREAD.keeper()) && spare_bytes >= PURGER_AFTER_BYTES && !THREAD.start() {
        end_period_if_due();
    }
}

/// Whether `spare_bytes` are worth a thread, and nobody ends the periods.
pub(crate) fn is_late(spare_bytes: usize) -> bool {
    spare_bytes >= PURGER_AFTER_BYTES && !THREAD.keeper().is_awake()
}

/// Lets `arena`, of which nothing is needed and `units` may be other than zero, go back after a while; `false` if it is not worth
/// a thread, or there may be none. The memory reads as zero when [`take_back`] says that it has gone.
pub(crate) fn offer_dead(arena: NonNull<u8>, units: u64, spare_bytes: usize) -> bool {
    let Some((_, index)) = idle_of(arena) else { return false };
    if spare_bytes < PURGER_AFTER_BYTES || !THREAD.is_allowed() {
        return false;
    }
    // Relaxed: the keeper acquires the units, which are offered after this and taken back before the bit goes.
    DEAD[index / 64].fetch_or(1 << (index % 64), Ordering::Relaxed);
    offer(arena, units, spare_bytes);
    true
}

/// Takes all of `arena`, which the caller holds, back. Returns the units that are still there, and of them those that
/// are not zero.
pub(crate) fn take_all_back(arena: NonNull<u8>) -> (u64, u64) {
    let left = take_back(arena, u64::MAX);
    let Some((_, index)) = idle_of(arena) else { return (left, 0) };
    let bit = 1 << (index % 64);
    let is_dead = DEAD[index / 64].fetch_and(!bit, Ordering::Relaxed) & bit != 0;
    (left, if is_dead { left } else { 0 })
}

/// Takes `units` of `arena`, which may have been offered, back; returns those that were not given back.
pub(crate) fn take_back(arena: NonNull<u8>, units: u64) -> u64 {
    idle_of(arena).map_or(units, |(idle, _)| idle.take_back(units, THREAD.keeper()))
}

/// Of `units`, which were offered, those that have not been given back; the memory of the others has gone.
pub(crate) fn waiting(arena: NonNull<u8>, units: u64) -> u64 {
    idle_of(arena).map_or(units, |(idle, _)| idle.waiting(THREAD.keeper()) & units)
}

/// What the thread gives back.
struct IdleArenas;

impl IdleMemory for IdleArenas {
    fn units(&self) -> &[IdleUnits] {
        &IDLE[..=OFFERED.load(Ordering::Relaxed).min(ARENAS_MAX)]
    }

    fn end_period(&self, keeper: &Keeper) {
        // Before, so that what comes free meanwhile is not taken out.
        IDLE[0].take_back(1, keeper);
        if run_memory::end_period() {
            IDLE[0].offer(1, keeper);
        }
        let Some(base) = NonNull::new(BASE.load(Ordering::Relaxed)) else { return };
        for (index, idle) in self.units()[1..].iter().enumerate() {
            idle.give_back(keeper, |units| {
                let arena = base.map_addr(|address| address.saturating_add(index << ARENA_SHIFT));
                let is_dead = DEAD[index / 64].load(Ordering::Relaxed) >> (index % 64) & 1 == 1;
                purge(arena, units, is_dead);
            });
        }
    }
}

/// Gives back `units` of `arena`, which were offered; the first one without the records, unless the arena is dead.
fn purge(arena: NonNull<u8>, mut units: u64, is_dead: bool) {
    if units & 1 != 0 && !is_dead {
        units &= !1;
        purge_first_unit(arena);
    }
    while units != 0 {
        // Neighbours go back in one call.
        let first = units.trailing_zeros();
        let count = (units >> first).trailing_ones() as usize;
        units &= units.wrapping_add(1 << first);
        let offset = (first as usize) << POOL_SHIFT;
        let start = arena.map_addr(|address| address.saturating_add(offset));
        let bytes = count * POOL_BYTES;
        // SAFETY: 1: units that were offered (`ArenaSource::offer` 1), and are the keeper's until this returns.
        let gone = unsafe { mmap::purge(start, bytes) };
        if is_dead && gone != bytes {
            // SAFETY: as above, and mapped.
            unsafe { start.write_bytes(0, bytes) };
        }
    }
}

/// Gives back the first unit of `arena`, which was offered, without the header.
fn purge_first_unit(arena: NonNull<u8>) {
    for part in beside_header(arena.addr().get(), 0, POOL_BYTES) {
        let start = arena.map_addr(|address| address.saturating_add(part.start));
        // SAFETY: 1: pages of a unit that was offered (`ArenaSource::offer` 1), and that are the keeper's meanwhile.
        unsafe { mmap::purge(start, part.len()) };
    }
}

/// Ends a period in a call, if the last one has lasted for long enough.
fn end_period_if_due() {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is writable.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    let (now, last) = (now.tv_sec as usize, ENDED.load(Ordering::Relaxed));
    let is_due = now.saturating_sub(last) >= IDLE_SECONDS as usize;
    if is_due && ENDED.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
        IdleArenas.end_period(THREAD.keeper());
    }
}
