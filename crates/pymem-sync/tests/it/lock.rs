//! The lock's interface; `loom_lock` shows that it excludes.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::Duration;

use pymem_sync::{Lock, RawLock};

#[test]
fn a_taken_lock_is_refused_until_its_guard_is_dropped() {
    let lock = Lock::new(1);
    let guard = lock.lock();
    assert!(lock.try_lock().is_none());
    assert_eq!(format!("{lock:?}"), "Lock(<locked>)");
    drop(guard);
    assert_eq!(*lock.try_lock().unwrap(), 1);
    assert_eq!(lock.into_inner(), 1);
}

#[test]
fn a_panic_unlocks() {
    let lock = Lock::new(());
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let _guard = lock.lock();
        panic!("while locked");
    }));
    assert!(panicked.is_err());
    assert!(!lock.raw().is_locked());
}

/// A waiter of real-time priority on the holder's processor would otherwise keep the holder from it for ever.
#[test]
fn a_waiter_sleeps() {
    const HELD: Duration = Duration::from_millis(300);
    let raw = RawLock::new();
    raw.lock();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            raw.lock();
            let mut used = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            // SAFETY: a clock of this thread, and a place for its time.
            unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut used) };
            Duration::new(used.tv_sec as u64, used.tv_nsec as u32)
        });
        thread::sleep(HELD);
        // SAFETY: (1) taken above.
        unsafe { raw.unlock() };
        let used = waiter.join().unwrap();
        assert!(used < HELD / 4, "{used:?} of processor time while waiting for {HELD:?}");
    });
    assert!(raw.is_locked(), "by the waiter");
}

#[test]
fn threads_count_without_a_loss() {
    let count = Lock::new(0_u64);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..50_000).for_each(|_| *count.lock() += 1));
        }
    });
    assert_eq!(count.into_inner(), 200_000);
}
