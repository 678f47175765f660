//! Owns [`ForkLocks`], the registry of locks that a forking thread holds over the fork: the child is left whole data and
//! unlocked locks, whatever the parent's other threads were doing.

use core::fmt;
use core::ptr;

use crate::lock::{Lock, RawLock};
use crate::sync::{AtomicBool, AtomicPtr, Ordering, Site, chosen, const_in_real};

/// One or more locks that a forking thread takes before the fork and gives back after it.
pub trait HeldOverFork: Sync {
    /// Takes them all; neither allocates nor unwinds.
    fn hold(&self);

    /// Gives them all back, in the parent and in the child.
    ///
    /// # Safety
    ///
    /// 1. This thread called [`hold`](Self::hold) and has not given the locks back since. (In a forked child: the thread
    ///    that forked.)
    unsafe fn release(&self);
}

impl HeldOverFork for RawLock {
    fn hold(&self) {
        self.lock();
    }

    unsafe fn release(&self) {
        // SAFETY: (1) held since `hold` on behalf of this thread (1), which touches no data.
        unsafe { self.unlock() };
    }
}

impl<T: ?Sized + Send> HeldOverFork for Lock<T> {
    fn hold(&self) {
        self.raw().lock();
    }

    unsafe fn release(&self) {
        // SAFETY: (1) held since `hold` on behalf of this thread (1), which touches no data.
        unsafe { self.raw().unlock() };
    }
}

/// Taken from the first to the last.
impl<L: HeldOverFork, const N: usize> HeldOverFork for [L; N] {
    fn hold(&self) {
        self.iter().for_each(L::hold);
    }

    unsafe fn release(&self) {
        // SAFETY: (1) `hold` took each of them, on behalf of this thread (1).
        self.iter().rev().for_each(|lock| unsafe { lock.release() });
    }
}

/// Where a lock stands in the order in which a forking thread takes them, first to last.
///
/// It must agree with the order of everybody else: whoever holds a lock may wait only for locks of later ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rank {
    /// Locks of the program on top, whose holders may call every allocator.
    Program,
    /// Locks of a set of domains.
    Domains,
    /// Locks of wrappers around an allocator.
    Wrapper,
    /// Locks of an allocator.
    Allocator,
    /// Locks of what allocators take their memory from.
    Memory,
}

/// A place in [`ForkLocks`]: some locks and their rank. Mostly a static.
pub struct ForkLock {
    rank: Rank,
    locks: &'static dyn HeldOverFork,
    /// The next one in the registry's order; written under the registry's lock.
    next: AtomicPtr<Self>,
    /// The one that was taken before this one; written and read by the thread that holds this one's locks.
    below: AtomicPtr<Self>,
    /// Written under the registry's lock.
    is_registered: AtomicBool,
}

impl ForkLock {
    const_in_real! {
        /// A place for `locks`, not registered yet.
        #[must_use]
        pub const fn new(rank: Rank, locks: &'static dyn HeldOverFork) -> Self {
            Self {
                rank,
                locks,
                next: AtomicPtr::new(ptr::null_mut()),
                below: AtomicPtr::new(ptr::null_mut()),
                is_registered: AtomicBool::new(false),
            }
        }
    }

    /// Whether it has a place already; `true` stays so.
    #[cfg(all(feature = "std", feature = "fork", unix, not(pymem_loom)))]
    pub(crate) fn is_registered(&self) -> bool {
        // Relaxed: whoever forks takes the registry's lock, under which this was written.
        self.is_registered.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for ForkLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForkLock").field("rank", &self.rank).finish_non_exhaustive()
    }
}

/// What is registered; pointers are null or made from `&'static ForkLock`.
struct Members {
    /// The first one in order of rank; of one rank, the newest first.
    first: *mut ForkLock,
    count: usize,
    /// While a fork is under way: the one that was taken last.
    top: *mut ForkLock,
}

// SAFETY: the pointers stand for shared references to `ForkLock`, which is `Sync`.
unsafe impl Send for Members {}

/// A registry of locks that are held over a fork. A process has one, behind [`hold_over_forks`].
pub struct ForkLocks {
    /// A leaf: whoever holds it waits for no other lock.
    members: Lock<Members>,
}

impl ForkLocks {
    const_in_real! {
        /// A registry of nothing.
        #[must_use]
        pub const fn new() -> Self {
            let members = Members { first: ptr::null_mut(), count: 0, top: ptr::null_mut() };
            Self { members: Lock::new(members) }
        }
    }

    /// Has `lock` held over every fork from now on; a second time changes nothing.
    ///
    /// Waits while a fork is under way. A caller that holds one of `lock`'s own locks may leave it taken in a child, so
    /// register it first.
    pub fn add(&self, lock: &'static ForkLock) {
        let mut members = self.members.lock();
        let this = ptr::from_ref(lock).cast_mut();
        if lock.is_registered.load(Ordering::Relaxed) {
            return;
        }
        lock.is_registered.store(true, Ordering::Relaxed);
        members.count += 1;
        let mut before = None;
        let mut after = first(&members);
        while let Some(member) = after.filter(|member| member.rank < lock.rank) {
            before = Some(member);
            after = member.next();
        }
        lock.next.store(
            after.map_or(ptr::null_mut(), |member| ptr::from_ref(member).cast_mut()),
            Ordering::Relaxed,
        );
        match before {
            Some(member) => member.next.store(this, Ordering::Relaxed),
            None => members.first = this,
        }
    }

    /// Takes every lock in order of rank, and keeps [`add`](Self::add) waiting: before a fork.
    ///
    /// Somebody may wait for the registry while holding a lock that is registered already, so the registry is not held
    /// while this waits for one. If more locks were registered meanwhile, all are taken again, to keep the order.
    pub fn prepare(&self) {
        loop {
            let (mut top, mut taken) = (ptr::null_mut::<ForkLock>(), 0);
            let mut next = first(&self.members.lock());
            while let Some(lock) = next {
                lock.locks.hold();
                lock.below.store(top, Ordering::Relaxed);
                top = ptr::from_ref(lock).cast_mut();
                taken += 1;
                let _members = self.members.lock();
                next = lock.next();
            }
            let mut members = self.members.lock();
            // See `loom_fork_pb3`.
            if chosen(Site::ForkRecount, members.count == taken, true) {
                members.top = top;
                core::mem::forget(members);
                return;
            }
            drop(members);
            // SAFETY: (1) taken above.
            unsafe { release_from(top) };
        }
    }

    /// Gives every lock back, the last one first: after a fork, in the parent and in the child.
    ///
    /// # Safety
    ///
    /// 1. This thread called [`prepare`](Self::prepare) and has not called `release` since. (In a forked child: the thread
    ///    that forked.)
    pub unsafe fn release(&self) {
        // SAFETY: `prepare` has kept the registry's lock for this thread (1), so nobody else reads or writes the members.
        let top = unsafe { (*self.members.as_ptr()).top };
        // SAFETY: (1) taken by `prepare` (1).
        unsafe { release_from(top) };
        // SAFETY: (1) kept since `prepare` (1), and the members are not touched below.
        unsafe { self.members.raw().unlock() };
    }
}

impl Default for ForkLocks {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for ForkLocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForkLocks").finish_non_exhaustive()
    }
}

fn first(members: &Members) -> Option<&'static ForkLock> {
    // SAFETY: null or made from a `&'static ForkLock`.
    unsafe { members.first.as_ref() }
}

impl ForkLock {
    /// The next one in order; for the holder of the registry's lock.
    fn next(&self) -> Option<&'static Self> {
        // SAFETY: null or made from a `&'static ForkLock`.
        unsafe { self.next.load(Ordering::Relaxed).as_ref() }
    }
}

/// Gives back the locks of `top` and of every one below it.
///
/// # Safety
///
/// 1. This thread, or in a forked child the thread that forked, took them and linked each to the one that it took before.
unsafe fn release_from(mut top: *mut ForkLock) {
    // SAFETY: null or made from a `&'static ForkLock`.
    while let Some(lock) = unsafe { top.as_ref() } {
        // Before the release: the link belongs to whoever holds the locks.
        top = lock.below.load(Ordering::Relaxed);
        // SAFETY: (1) is ours.
        unsafe { lock.locks.release() };
    }
}

#[cfg(all(feature = "fork", unix, not(pymem_loom)))]
pub use process::hold_over_forks;

#[cfg(all(feature = "fork", unix, not(pymem_loom)))]
mod process {
    use core::ptr;

    use super::{ForkLock, ForkLocks};
    use crate::sync::{AtomicBool, AtomicPtr, AtomicU16, Ordering};

    static PROCESS: ForkLocks = ForkLocks::new();
    /// Relaxed: whoever registers a lock while handlers are missing registers them too.
    static HAS_HANDLERS: AtomicBool = AtomicBool::new(false);
    /// The thread that forks, by its number; null for none. Relaxed: a thread looks for what it has written itself.
    static FORKING: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());
    /// How often the handlers are there for the fork under way. Used by the thread that forks.
    static HANDLERS: AtomicU16 = AtomicU16::new(0);

    /// Has `lock` held over every fork of the process from now on; a second call for it changes nothing.
    ///
    /// Call it before `lock`'s locks are first taken. The first call registers handlers with `pthread_atfork`.
    ///
    /// # Errors
    ///
    /// The error number of `pthread_atfork`, 12 for want of memory; the next call tries again.
    ///
    /// # Examples
    ///
    /// ```
    /// use pymem_sync::{ForkLock, Lock, Rank, hold_over_forks};
    ///
    /// static NAMES: Lock<Vec<String>> = Lock::new(Vec::new());
    /// static HELD: ForkLock = ForkLock::new(Rank::Program, &NAMES);
    ///
    /// hold_over_forks(&HELD).expect("memory for a handler");
    /// // A child that is forked from now on finds `NAMES` unlocked and whole.
    /// ```
    pub fn hold_over_forks(lock: &'static ForkLock) -> Result<(), i32> {
        // No lock: a child that is forked here would inherit it. So two threads, or a child, may register the handlers again.
        if !HAS_HANDLERS.load(Ordering::Relaxed) {
            // SAFETY: three functions without arguments that do not unwind.
            let errno =
                unsafe { libc::pthread_atfork(Some(prepare), Some(release), Some(release)) };
            if errno != 0 {
                return Err(errno);
            }
            HAS_HANDLERS.store(true, Ordering::Relaxed);
        }
        PROCESS.add(lock);
        Ok(())
    }

    fn this_thread() -> *mut () {
        // SAFETY: no preconditions.
        ptr::without_provenance_mut((unsafe { libc::pthread_self() }) as usize)
    }

    extern "C" fn prepare() {
        if FORKING.load(Ordering::Relaxed) != this_thread() {
            PROCESS.prepare();
            FORKING.store(this_thread(), Ordering::Relaxed);
        }
        HANDLERS.store(HANDLERS.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    extern "C" fn release() {
        // 0 would be a fork that began before the handlers were there.
        let Some(left) = HANDLERS.load(Ordering::Relaxed).checked_sub(1) else { return };
        HANDLERS.store(left, Ordering::Relaxed);
        if left == 0 {
            FORKING.store(ptr::null_mut(), Ordering::Relaxed);
            // SAFETY: (1) `prepare` ran on the thread that forks, which this one is or, in the child, was, and this is the last handler.
            unsafe { PROCESS.release() };
        }
    }
}
