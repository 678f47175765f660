//! The lock excludes, and hands the last owner's writes to the next.

use loom::thread;
use pymem_sync::sync::Site;
use pymem_sync::{Lock, RawLock};

use crate::model::{Leak, Model, Plain};

#[test]
fn one_owner_at_a_time() {
    let model = Model {
        name: "one_owner_at_a_time",
        preemptions: None,
        floor: 200,
        controls: &[Site::LockAcquire, Site::LockRelease],
    };
    model.check(|| {
        let lock = Leak::new(Lock::new(Plain::new(0)));
        let shared = lock.get();
        let add = move || {
            let count = shared.lock();
            count.write(count.read() + 1);
        };
        let threads = [thread::spawn(add), thread::spawn(add)];
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(shared.lock().read(), 2);
        lock.free();
    });
}

#[test]
fn a_failed_try_touches_nothing() {
    let model = Model {
        name: "a_failed_try_touches_nothing",
        preemptions: None,
        floor: 80,
        controls: &[Site::LockAcquire, Site::LockRelease],
    };
    model.check(|| {
        let raw = Leak::new((RawLock::new(), Plain::new(0)));
        let (lock, count) = raw.get();
        let other = thread::spawn(move || {
            if !lock.try_lock() {
                return 0;
            }
            count.write(count.read() + 1);
            // SAFETY: (1) taken above.
            unsafe { lock.unlock() };
            1
        });
        lock.lock();
        count.write(count.read() + 1);
        // SAFETY: (1) taken above.
        unsafe { lock.unlock() };
        let added = other.join().unwrap();
        assert_eq!(count.read(), 1 + added);
        raw.free();
    });
}
