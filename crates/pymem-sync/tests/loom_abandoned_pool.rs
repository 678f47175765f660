//! The pool of abandoned things: nothing is taken twice or lost, also when a node comes back meanwhile (ABA), and the
//! last owner's plain data is visible to the taker.
#![cfg(pymem_loom)]

#[path = "model/mod.rs"]
mod model;

use std::sync::atomic::{AtomicBool, Ordering};

use loom::thread;
use model::{Leak, Model, Plain};
use pymem_sync::sync::Site;
use pymem_sync::{AbandonedPool, Node, Owned};

struct Thing {
    number: usize,
    /// Outside the model: whether somebody has it.
    is_owned: AtomicBool,
    uses: Plain<usize>,
}

impl Thing {
    fn boxed(number: usize) -> Owned<'static, Self> {
        let thing = Self { number, is_owned: AtomicBool::new(false), uses: Plain::new(0) };
        Owned::new(Box::leak(Box::new(Node::new(thing))))
    }
}

type Pool = AbandonedPool<'static, Thing>;

fn take(pool: &Pool) -> Option<Owned<'static, Thing>> {
    let thing = pool.take()?;
    assert!(!thing.is_owned.swap(true, Ordering::Relaxed), "taken twice");
    thing.uses.write(thing.uses.read() + 1);
    Some(thing)
}

fn give(pool: &Pool, thing: Owned<'static, Thing>) {
    thing.uses.write(thing.uses.read() + 1);
    thing.is_owned.store(false, Ordering::Relaxed);
    pool.give(thing);
}

/// Ends a model: every thing is in `taken` or in the pool, once.
fn settle(pool: Leak<Pool>, taken: Vec<Owned<'static, Thing>>, things: usize) {
    let mut all = taken;
    while let Some(thing) = take(pool.get()) {
        all.push(thing);
    }
    let mut numbers: Vec<_> = all.iter().map(|thing| thing.number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..things).collect::<Vec<_>>(), "lost or doubled");
    pool.free();
    for thing in all {
        // SAFETY: a leaked box that nobody else has, as the numbers are all different.
        drop(unsafe { Box::from_raw(thing.into_raw().as_ptr()) });
    }
}

#[test]
fn a_node_that_comes_back_is_not_taken_for_the_old_one() {
    let model = Model {
        name: "a_node_that_comes_back_is_not_taken_for_the_old_one",
        preemptions: None,
        floor: 50_000,
        controls: &[Site::PoolVersion, Site::PoolGive, Site::PoolTake],
    };
    model.check(|| {
        let pool = Leak::new(Pool::new());
        let shared = pool.get();
        give(shared, Thing::boxed(0));
        give(shared, Thing::boxed(1));
        let other = thread::spawn(move || {
            let first = take(shared);
            let second = take(shared);
            if let Some(first) = first {
                give(shared, first);
            }
            second
        });
        let mut taken = Vec::from_iter(take(shared));
        taken.extend(other.join().unwrap());
        settle(pool, taken, 2);
    });
}

#[test]
fn two_takers_and_a_giver_share_nothing() {
    let model = Model {
        name: "two_takers_and_a_giver_share_nothing",
        preemptions: None,
        floor: 5_000,
        controls: &[Site::PoolGive, Site::PoolTake],
    };
    model.check(|| {
        let pool = Leak::new(Pool::new());
        let shared = pool.get();
        let giver = thread::spawn(move || give(shared, Thing::boxed(0)));
        let taker = thread::spawn(move || take(shared));
        let mut taken = Vec::from_iter(take(shared));
        giver.join().unwrap();
        taken.extend(taker.join().unwrap());
        settle(pool, taken, 1);
    });
}
