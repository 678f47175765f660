//! The lock's interface; `loom_lock` shows that it excludes.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

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

#[test]
fn a_waiter_waits_as_it_was_told() {
    let raw = RawLock::new();
    raw.lock();
    let rounds = AtomicU32::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            raw.lock_with(|round| {
                assert_eq!(rounds.swap(round, Ordering::Relaxed), round.saturating_sub(1));
                thread::yield_now();
            });
        });
        while rounds.load(Ordering::Relaxed) < 10 {
            thread::yield_now();
        }
        // SAFETY: (1) taken above.
        unsafe { raw.unlock() };
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
