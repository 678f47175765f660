//! Owns memory of the region that nobody needs at the moment: the memory stays for one period at least and for two at most, also
//! in a process that makes no further call. Leaves to `pymem_sync::IdleUnits` how owner and purger agree without a lock.
//!
//! A thread ends the periods. It starts when some allocator has a few MiB to spare, ends when nothing waits any more, and is
//! gone before a fork: what waits then goes back at once, since after a fork each page costs a fault anyway. Where a
//! thread is not allowed, the calls that offer memory end the periods.

use core::ffi::c_void;
use core::mem::MaybeUninit;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use pymem_sync::{ForkLock, HeldOverFork, IdleUnits, Keeper, Rank, hold_over_forks};

use crate::config::{ARENA_SHIFT, ARENAS_MAX, POOL_BYTES, POOL_SHIFT};
use crate::policy::{IDLE_SECONDS, PURGER_AFTER_BYTES};
use crate::pool::beside_header;
use crate::sources::mmap;

/// Bytes of the thread's stack, beside what the C library puts there.
const STACK_BYTES: usize = 256 << 10;

static IDLE: [IdleUnits; ARENAS_MAX] = [const { IdleUnits::new() }; ARENAS_MAX];
/// A bit for each arena that no allocator has: nothing in it is needed, the records included.
static DEAD: [AtomicU64; ARENAS_MAX / 64] = [const { AtomicU64::new(0) }; ARENAS_MAX / 64];
static KEEPER: Keeper = Keeper::new();
/// Arenas from this one on have offered nothing yet.
static OFFERED: AtomicUsize = AtomicUsize::new(0);
/// Where the region begins, once it does.
static BASE: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());
/// Whether there may be a thread.
static IS_ALLOWED: AtomicBool = AtomicBool::new(true);
/// Not 0: the thread ends.
static IS_OVER: AtomicU32 = AtomicU32::new(0);
/// When a call ended a period, in seconds of the system's clock.
static ENDED: AtomicUsize = AtomicUsize::new(0);

/// Says where the region begins.
pub(crate) fn begin(base: NonNull<u8>) {
    // Relaxed: whoever has an arena has had the region's lock.
    BASE.store(base.as_ptr(), Ordering::Relaxed);
}

/// Whether a thread may end the periods, from now on; one that runs ends by itself.
pub(crate) fn allow_thread(is_allowed: bool) {
    IS_ALLOWED.store(is_allowed, Ordering::Relaxed);
}

/// The words of `arena`, and its number; `None` outside of the region.
fn idle_of(arena: NonNull<u8>) -> Option<(&'static IdleUnits, usize)> {
    let base = BASE.load(Ordering::Relaxed);
    let index = arena.addr().get().wrapping_sub(base.addr()) >> ARENA_SHIFT;
    Some((IDLE.get(index).filter(|_| !base.is_null())?, index))
}

/// Lets `units` of `arena` go back after a while; their allocator has `spare_bytes` of such memory.
pub(crate) fn offer(arena: NonNull<u8>, units: u64, spare_bytes: usize) {
    let Some((idle, index)) = idle_of(arena) else { return };
    if OFFERED.load(Ordering::Relaxed) <= index {
        OFFERED.fetch_max(index + 1, Ordering::Relaxed);
    }
    if idle.offer(units, &KEEPER) || spare_bytes < PURGER_AFTER_BYTES {
        return;
    }
    if IS_ALLOWED.load(Ordering::Relaxed) {
        start();
    } else {
        end_period_if_due();
    }
}

/// Lets `arena`, of which nothing is needed and `units` may be other than zero, go back after a while; `false` if it is not worth
/// a thread, or there may be none. The memory reads as zero when [`take_back`] says that it has gone.
pub(crate) fn offer_dead(arena: NonNull<u8>, units: u64, spare_bytes: usize) -> bool {
    let Some((_, index)) = idle_of(arena) else { return false };
    if spare_bytes < PURGER_AFTER_BYTES || !IS_ALLOWED.load(Ordering::Relaxed) {
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
    idle_of(arena).map_or(units, |(idle, _)| idle.take_back(units, &KEEPER))
}

/// Of `units`, which were offered, those that have not been given back; the memory of the others has gone.
pub(crate) fn waiting(arena: NonNull<u8>, units: u64) -> u64 {
    idle_of(arena).map_or(units, |(idle, _)| idle.waiting(&KEEPER) & units)
}

/// Every word in use.
fn all() -> &'static [IdleUnits] {
    &IDLE[..OFFERED.load(Ordering::Relaxed).min(ARENAS_MAX)]
}

/// Ends a period: what was offered before it goes back.
fn end_period() {
    let Some(base) = NonNull::new(BASE.load(Ordering::Relaxed)) else { return };
    for (index, idle) in all().iter().enumerate() {
        idle.give_back(&KEEPER, |mut units| {
            let arena = base.map_addr(|address| address.saturating_add(index << ARENA_SHIFT));
            let is_dead = DEAD[index / 64].load(Ordering::Relaxed) >> (index % 64) & 1 == 1;
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
        });
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
        end_period();
    }
}

/// Ends the thread before every fork. Locks under which this module is called are registered later, and so are taken earlier.
///
/// # Errors
///
/// As [`hold_over_forks`].
pub(crate) fn stop_before_forks() -> Result<(), i32> {
    static OVER_FORKS: ForkLock = ForkLock::new(Rank::Memory, &BeforeForks);
    hold_over_forks(&OVER_FORKS)
}

/// Starts the thread unless it runs. Where that fails, the calls end the periods from now on.
#[cold]
fn start() {
    if stop_before_forks().is_ok() && KEEPER.wake() && !spawn() {
        allow_thread(false);
        KEEPER.stop();
    }
}

/// Starts the thread, for which the keeper is awake: detached, on a small stack, without signals. Nothing is allocated from the
/// program's own allocator, which may be in a call.
fn spawn() -> bool {
    let mut attributes = MaybeUninit::<libc::pthread_attr_t>::uninit();
    let attributes = attributes.as_mut_ptr();
    // SAFETY: a place for attributes.
    if unsafe { libc::pthread_attr_init(attributes) } != 0 {
        return false;
    }
    // SAFETY: initialised above. A refusal leaves the usual size.
    unsafe { libc::pthread_attr_setstacksize(attributes, STACK_BYTES) };
    // SAFETY: as above.
    unsafe { libc::pthread_attr_setdetachstate(attributes, libc::PTHREAD_CREATE_DETACHED) };
    let mut signals = [const { MaybeUninit::<libc::sigset_t>::uninit() }; 2];
    let [every, before] = signals.each_mut().map(MaybeUninit::as_mut_ptr);
    // SAFETY: a place for a set.
    unsafe { libc::sigfillset(every) };
    // SAFETY: a set, and a place for one. The new thread inherits the mask.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, every, before) };
    let mut thread = MaybeUninit::uninit();
    // SAFETY: initialised attributes, and a function that does not unwind.
    let error =
        unsafe { libc::pthread_create(thread.as_mut_ptr(), attributes, run, ptr::null_mut()) };
    // SAFETY: the set that the call above filled.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before, ptr::null_mut()) };
    // SAFETY: initialised above, and not used again.
    unsafe { libc::pthread_attr_destroy(attributes) };
    error == 0
}

extern "C" fn run(_: *mut c_void) -> *mut c_void {
    loop {
        sleep::until_woken(&IS_OVER);
        if IS_OVER.load(Ordering::Relaxed) != 0 {
            KEEPER.stop();
            break;
        }
        end_period();
        if KEEPER.rest(all()) {
            break;
        }
    }
    ptr::null_mut()
}

/// Ends the thread before a fork, and gives back what waits: a child has no such thread, and a program may count its threads.
struct BeforeForks;

impl HeldOverFork for BeforeForks {
    fn hold(&self) {
        loop {
            IS_OVER.store(1, Ordering::Relaxed);
            sleep::wake(&IS_OVER);
            while KEEPER.is_awake() {
                std::thread::sleep(core::time::Duration::from_micros(20));
            }
            // The second period gives back what was young in the first.
            end_period();
            end_period();
            KEEPER.lock().lock();
            if !KEEPER.is_awake() {
                break;
            }
            // SAFETY: (1) taken above; it protects no data of its own.
            unsafe { KEEPER.lock().unlock() };
        }
        IS_OVER.store(0, Ordering::Relaxed);
    }

    unsafe fn release(&self) {
        // SAFETY: (1) taken by `hold` (1).
        unsafe { KEEPER.lock().unlock() };
    }
}

/// How the thread waits.
#[cfg(target_os = "linux")]
mod sleep {
    use core::ptr;
    use core::sync::atomic::AtomicU32;

    use crate::policy::IDLE_SECONDS;

    /// Waits for a period, or until `word` is not 0.
    pub(super) fn until_woken(word: &AtomicU32) {
        let operation = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
        let period = libc::timespec { tv_sec: IDLE_SECONDS, tv_nsec: 0 };
        // SAFETY: a word and a time that outlive the call.
        unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, 0, &raw const period) };
    }

    pub(super) fn wake(word: &AtomicU32) {
        let operation = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
        let nothing = ptr::null::<libc::timespec>();
        // SAFETY: a word that outlives the call.
        unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, 1, nothing) };
    }
}

/// How the thread waits where there are no futexes.
#[cfg(not(target_os = "linux"))]
mod sleep {
    use core::sync::atomic::{AtomicU32, Ordering};
    use std::time::{Duration, Instant};

    use crate::policy::IDLE_SECONDS;

    /// Waits for a period, or until `word` is not 0.
    pub(super) fn until_woken(word: &AtomicU32) {
        let start = Instant::now();
        while word.load(Ordering::Relaxed) == 0 && start.elapsed().as_secs() < IDLE_SECONDS as u64 {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(super) const fn wake(_word: &AtomicU32) {}
}
