//! Owns [`IdleThread`]: the thread that ends the periods of [`IdleUnits`]. It starts when there is something to wait for, sleeps, ends
//! when nothing waits any more, and is gone before a fork: what waits then goes back at once, since after a fork each page costs a
//! fault anyway.

use core::ffi::c_void;
use core::fmt;
use core::mem::MaybeUninit;
use core::ptr;

use crate::fork::{ForkLock, HeldOverFork, hold_over_forks};
use crate::idle::{IdleUnits, Keeper};
use crate::idle_threads;
use crate::sync::{AtomicBool, AtomicU32, Ordering};

/// Bytes of the thread's stack, beside what the C library puts there.
const STACK_BYTES: usize = 256 << 10;

/// Memory that an [`IdleThread`] gives back.
pub trait IdleMemory: Sync {
    /// Every word that is in use. A word's owner says that it is, for this to read, before its first [offer](IdleUnits::offer).
    fn units(&self) -> &[IdleUnits];

    /// Ends a period: calls [`IdleUnits::give_back`] of each word. Neither allocates from what is given back nor unwinds.
    fn end_period(&self, keeper: &Keeper);
}

/// A thread that ends the periods of some memory. A static, which [`ForkLock`] is made from.
///
/// It is detached, has a small stack, every signal is blocked in it, and what it takes memory from is the C library.
pub struct IdleThread {
    keeper: Keeper,
    memory: &'static dyn IdleMemory,
    /// Has `hold` of this called before every fork.
    over_forks: &'static ForkLock,
    /// How long a period is.
    seconds: u32,
    /// Whether there may be a thread.
    is_allowed: AtomicBool,
    /// Not 0: the thread ends.
    is_over: AtomicU32,
}

impl IdleThread {
    /// No thread yet. `over_forks` is the place of this one in the order of locks over forks.
    #[must_use]
    pub const fn new(
        memory: &'static dyn IdleMemory,
        over_forks: &'static ForkLock,
        seconds: u32,
    ) -> Self {
        Self {
            keeper: Keeper::new(),
            memory,
            over_forks,
            seconds,
            is_allowed: AtomicBool::new(true),
            is_over: AtomicU32::new(0),
        }
    }

    /// The keeper of the memory's units.
    #[must_use]
    pub const fn keeper(&self) -> &Keeper {
        &self.keeper
    }

    /// Whether there may be a thread, from now on; one that runs ends by itself.
    pub fn allow(&self, is_allowed: bool) {
        self.is_allowed.store(is_allowed, Ordering::Relaxed);
    }

    /// Whether there may be a thread.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        self.is_allowed.load(Ordering::Relaxed)
    }

    /// Has the thread end before every fork, from now on. Locks under which it is started are registered later, and so are taken
    /// earlier.
    ///
    /// # Errors
    ///
    /// As [`hold_over_forks`].
    pub fn stop_before_forks(&self) -> Result<(), i32> {
        hold_over_forks(self.over_forks)
    }

    /// Starts the thread unless it runs; `false` if there may be none, or none could start: then there may be none from now on.
    #[cold]
    pub fn start(&'static self) -> bool {
        if !self.is_allowed() {
            return false;
        }
        // A handler of a fork may come here, and may not wait for the registry.
        let is_stopped = self.over_forks.is_registered() || self.stop_before_forks().is_ok();
        if is_stopped && self.keeper.wake() && !self.spawn() {
            self.allow(false);
            self.keeper.stop();
        }
        is_stopped && self.is_allowed()
    }

    /// Starts the thread, for which the keeper is awake. Nothing is allocated from the program's own allocator, which may be in a call.
    fn spawn(&'static self) -> bool {
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
        let this = ptr::from_ref(self).cast_mut().cast();
        idle_threads::starts();
        // SAFETY: initialised attributes, and a function that does not unwind and gets what it asks for.
        let error = unsafe { libc::pthread_create(thread.as_mut_ptr(), attributes, run, this) };
        // SAFETY: the set that the call above filled.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before, ptr::null_mut()) };
        // SAFETY: initialised above, and not used again.
        unsafe { libc::pthread_attr_destroy(attributes) };
        if error != 0 {
            idle_threads::cannot_start();
        }
        error == 0
    }

    fn work(&self) {
        idle_threads::runs();
        loop {
            sleep::until_woken(&self.is_over, self.seconds);
            if self.is_over.load(Ordering::Relaxed) != 0 {
                // A child that is forked next has no such thread.
                idle_threads::ends();
                return self.keeper.stop();
            }
            self.memory.end_period(&self.keeper);
            idle_threads::ends();
            if self.keeper.rest(|| self.memory.units()) {
                return;
            }
            idle_threads::goes_on();
        }
    }
}

/// The thread's life; `thread` is an [`IdleThread`].
extern "C" fn run(thread: *mut c_void) -> *mut c_void {
    // SAFETY: `spawn`, the only user, passes a static reference.
    let thread = unsafe { &*thread.cast::<IdleThread>() };
    thread.work();
    ptr::null_mut()
}

/// Ends the thread before a fork, and gives back what waits: a child has no such thread, and a program may count its threads.
impl HeldOverFork for IdleThread {
    fn hold(&self) {
        loop {
            self.is_over.store(1, Ordering::Relaxed);
            sleep::wake(&self.is_over);
            while self.keeper.is_awake() {
                std::thread::sleep(core::time::Duration::from_micros(20));
            }
            // The second period gives back what was young in the first.
            self.memory.end_period(&self.keeper);
            self.memory.end_period(&self.keeper);
            self.keeper.lock().lock();
            if !self.keeper.is_awake() {
                break;
            }
            // SAFETY: (1) taken above; it protects no data of its own.
            unsafe { self.keeper.lock().unlock() };
        }
        self.is_over.store(0, Ordering::Relaxed);
    }

    unsafe fn release(&self) {
        // SAFETY: (1) taken by `hold` (1).
        unsafe { self.keeper.lock().unlock() };
    }
}

impl fmt::Debug for IdleThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdleThread").field("keeper", &self.keeper).finish_non_exhaustive()
    }
}

/// How the thread waits.
#[cfg(target_os = "linux")]
mod sleep {
    use core::ptr;

    use crate::sync::AtomicU32;

    /// Waits for a period, or until `word` is not 0.
    pub(super) fn until_woken(word: &AtomicU32, seconds: u32) {
        let operation = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
        let period = libc::timespec { tv_sec: libc::time_t::from(seconds), tv_nsec: 0 };
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
    use std::time::{Duration, Instant};

    use crate::sync::{AtomicU32, Ordering};

    /// Waits for a period, or until `word` is not 0.
    pub(super) fn until_woken(word: &AtomicU32, seconds: u32) {
        let start = Instant::now();
        while word.load(Ordering::Relaxed) == 0 && start.elapsed().as_secs() < u64::from(seconds) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(super) const fn wake(_word: &AtomicU32) {}
}
