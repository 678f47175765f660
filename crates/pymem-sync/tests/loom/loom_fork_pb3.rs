//! A fork finds every registered lock held and its data whole, also a lock that was registered while others were taken.

use loom::thread;
use pymem_sync::sync::Site;
use pymem_sync::{ForkLock, ForkLocks, Rank, RawLock};

use crate::model::{Leak, Model, Plain};

/// One thread forks while another one registers a lock and uses it; with `under`, while that one holds the lock `outer`.
fn fork_beside_a_new_lock(under: bool) {
    let (outer, inner) = (Leak::new(RawLock::new()), Leak::new(RawLock::new()));
    let outer_place = Leak::new(ForkLock::new(Rank::Domains, outer.get()));
    let inner_place = Leak::new(ForkLock::new(Rank::Allocator, inner.get()));
    let (locks, count) = (Leak::new(ForkLocks::new()), Leak::new(Plain::new(0)));
    let (shared, outer_lock, inner_lock) = (locks.get(), outer.get(), inner.get());
    let (place, data) = (inner_place.get(), count.get());
    shared.add(outer_place.get());
    let add = move || {
        shared.add(place);
        within(inner_lock, || data.write(data.read() + 1));
    };
    let other = thread::spawn(move || if under { within(outer_lock, add) } else { add() });
    shared.prepare();
    // The other thread has not registered its lock yet, or this one holds it.
    let before = data.read();
    // SAFETY: (1) prepared by this thread.
    unsafe { shared.release() };
    other.join().unwrap();
    assert!(before <= data.read());
    locks.free();
    inner_place.free();
    outer_place.free();
    inner.free();
    outer.free();
    count.free();
}

fn within(lock: &RawLock, work: impl FnOnce()) {
    lock.lock();
    work();
    // SAFETY: (1) taken above.
    unsafe { lock.unlock() };
}

#[test]
fn a_late_lock_is_held_too() {
    let model = Model {
        name: "a_late_lock_is_held_too",
        preemptions: Some(3),
        floor: 1_000,
        controls: &[Site::ForkRecount, Site::LockAcquire, Site::LockRelease],
    };
    model.check(|| fork_beside_a_new_lock(false));
}

#[test]
fn a_lock_may_be_registered_under_another() {
    let model = Model {
        name: "a_lock_may_be_registered_under_another",
        preemptions: Some(3),
        floor: 300,
        controls: &[Site::LockAcquire, Site::LockRelease],
    };
    model.check(|| fork_beside_a_new_lock(true));
}
