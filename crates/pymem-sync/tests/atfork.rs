//! Two first calls of `hold_over_forks` at once, by a `pthread_atfork` of the program's own that keeps the first one waiting.

#![cfg(all(target_os = "linux", target_env = "gnu"))]

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use pymem_sync::{ForkLock, HeldOverFork, Rank, RawLock, hold_over_forks};

type Handler = Option<unsafe extern "C" fn()>;

unsafe extern "C" {
    fn __register_atfork(a: Handler, b: Handler, c: Handler, library: *mut c_void) -> c_int;
}

/// Calls of `pthread_atfork` so far.
static CALLS: AtomicUsize = AtomicUsize::new(0);
/// Not 0: the first call goes on.
static GO_ON: AtomicUsize = AtomicUsize::new(0);

fn wait_for(word: &AtomicUsize) {
    while word.load(Ordering::SeqCst) == 0 {
        thread::sleep(Duration::from_millis(1));
    }
}

/// As the C library's.
#[unsafe(no_mangle)]
pub extern "C" fn pthread_atfork(prepare: Handler, parent: Handler, child: Handler) -> c_int {
    if CALLS.fetch_add(1, Ordering::SeqCst) == 0 {
        wait_for(&GO_ON);
    }
    // SAFETY: the caller's functions; null stands for the program.
    unsafe { __register_atfork(prepare, parent, child, std::ptr::null_mut()) }
}

static FIRST: RawLock = RawLock::new();
static HOLD_FIRST: ForkLock = ForkLock::new(Rank::Allocator, &FIRST);
static SECOND: RawLock = RawLock::new();
static HOLD_SECOND: ForkLock = ForkLock::new(Rank::Allocator, &SECOND);

/// How often it is held more than given back.
struct Balance(AtomicUsize);

impl HeldOverFork for Balance {
    fn hold(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    unsafe fn release(&self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

static BALANCE: Balance = Balance(AtomicUsize::new(0));
static HOLD_BALANCE: ForkLock = ForkLock::new(Rank::Memory, &BALANCE);

/// Seconds after which a process counts as hung; it needs milliseconds.
const HUNG: u32 = 5;

/// Runs `work` in a child; whether it neither failed nor hung.
fn in_child(work: impl FnOnce() -> bool) -> bool {
    // SAFETY: what the child does may hang, which is what is tested.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: ends a process that hangs.
        unsafe { libc::alarm(HUNG) };
        let status = i32::from(!work());
        // SAFETY: ends the child without the parent's destructors.
        unsafe { libc::_exit(status) };
    }
    let mut status = 0;
    // SAFETY: the child's number, and a place.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    status == 0
}

/// Forks while another thread has the second lock; whether the child could take it, and its own child too.
fn a_child_finds_the_second_lock_free() -> bool {
    let (to_main, taken) = channel();
    let user = thread::spawn(move || {
        SECOND.lock();
        to_main.send(()).unwrap();
        thread::sleep(Duration::from_millis(100));
        // SAFETY: (1) taken above.
        unsafe { SECOND.unlock() };
    });
    taken.recv().unwrap();
    let take = || {
        SECOND.lock();
        // SAFETY: (1) taken above.
        unsafe { SECOND.unlock() };
        BALANCE.0.load(Ordering::SeqCst) == 0
    };
    let is_free = in_child(|| take() && in_child(take));
    user.join().unwrap();
    is_free && BALANCE.0.load(Ordering::SeqCst) == 0
}

#[test]
fn a_lock_that_is_held_over_forks_is_so_from_then_on() {
    // SAFETY: as above.
    unsafe { libc::alarm(6 * HUNG) };
    let first = thread::spawn(|| hold_over_forks(&HOLD_FIRST));
    wait_for(&CALLS);
    let hold_and_fork = || {
        assert_eq!(hold_over_forks(&HOLD_SECOND), Ok(()));
        assert_eq!(hold_over_forks(&HOLD_BALANCE), Ok(()));
        a_child_finds_the_second_lock_free()
    };
    assert!(in_child(hold_and_fork), "a child from the first call has no handlers");
    assert!(
        hold_and_fork(),
        "the second call came back before the first one's handlers were there"
    );
    GO_ON.store(1, Ordering::SeqCst);
    assert_eq!(first.join().unwrap(), Ok(()));
    assert!(a_child_finds_the_second_lock_free(), "the handlers are there twice");
    // SAFETY: stops the clock.
    unsafe { libc::alarm(0) };
}
