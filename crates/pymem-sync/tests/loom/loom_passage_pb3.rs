//! Nobody is in the data without the lock once the passage is closed, and who takes the lock then sees what was done without it.

use loom::sync::Mutex;
use loom::sync::atomic::Ordering;
use loom::thread;
use pymem_sync::sync::Site;

use crate::model::{Leak, Model};
use crate::two_ways::Pools;

/// One thread makes a call under the callers' lock; another one, which does not hold that, closes the passage and then calls.
#[test]
fn a_call_without_the_lock_is_over_when_the_passage_is_closed() {
    let model = Model {
        name: "a_call_without_the_lock_is_over_when_the_passage_is_closed",
        preemptions: Some(3),
        floor: 50,
        controls: &[
            Site::PassageEnter,
            Site::PassageSign,
            Site::PassageWait,
            Site::PassageLeave,
            Site::PassageWaited,
        ],
    };
    model.check(|| {
        let pools = Pools::new();
        let shared = pools.get();
        let caller = thread::spawn(move || {
            shared.call();
        });
        shared.close();
        shared.call_locked();
        caller.join().unwrap();
        assert_eq!(shared.data.read(), 2);
        pools.free();
    });
}

/// A call that has begun before sets the sign anew, which must not outlast the close.
#[test]
fn a_sign_is_not_taken_back() {
    let model = Model {
        name: "a_sign_is_not_taken_back",
        preemptions: Some(3),
        floor: 50,
        controls: &[Site::PassageEnter, Site::PassageClose, Site::PassageWait],
    };
    model.check(|| {
        let pools = Pools::new();
        let shared = pools.get();
        let caller = thread::spawn(move || shared.call_slowly());
        shared.close();
        shared.call_locked();
        caller.join().unwrap();
        assert!(!shared.sign.load(Ordering::Relaxed), "open again");
        assert_eq!(shared.data.read(), 2);
        pools.free();
    });
}

/// Two threads of the first interpreter take turns by its lock; a third one, which is in no interpreter, makes the second.
#[test]
fn callers_take_turns_until_the_passage_is_closed() {
    let model = Model {
        name: "callers_take_turns_until_the_passage_is_closed",
        preemptions: Some(3),
        floor: 100,
        controls: &[Site::PassageWait, Site::PassageLeave, Site::PassageWaited],
    };
    model.check(|| {
        let pools = Pools::new();
        let gil = Leak::new(Mutex::new(()));
        let (shared, lock) = (pools.get(), gil.get());
        let call = move || {
            let _turn = lock.lock().unwrap();
            shared.call();
        };
        let callers = [thread::spawn(call), thread::spawn(call)];
        shared.close();
        shared.call();
        callers.into_iter().for_each(|caller| caller.join().unwrap());
        assert_eq!(shared.data.read(), 3);
        gil.free();
        pools.free();
    });
}

/// Of two threads that make an interpreter each, the second goes on when the first has closed the passage, and not before.
#[test]
fn who_finds_the_passage_closed_may_go_on() {
    let model = Model {
        name: "who_finds_the_passage_closed_may_go_on",
        preemptions: Some(3),
        floor: 100,
        controls: &[Site::PassageClosed, Site::PassageSeen],
    };
    model.check(|| {
        let pools = Pools::new();
        let shared = pools.get();
        let caller = thread::spawn(move || shared.call());
        let other = thread::spawn(move || shared.close());
        if shared.passage.is_closed() {
            shared.call_locked();
        }
        caller.join().unwrap();
        other.join().unwrap();
        pools.free();
    });
}
