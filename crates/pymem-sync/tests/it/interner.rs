//! [`Interner`]: each key once, whoever adds it, and nothing left behind.

use std::collections::BTreeSet;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use pymem_sync::Interner;

/// A value that counts how many of its kind there are.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[test]
fn keys_that_share_a_bucket_are_told_apart() {
    let table = Interner::new(1).expect("memory");
    for key in 0..1_000_u64 {
        let entry = table.intern(key, key, || key * 2).expect("memory");
        assert_eq!((*entry.key(), *entry.value()), (key, key * 2));
    }
    assert_eq!(table.len(), 1_000);
    assert!((0..1_000).all(|key| table.find(key, &key).is_some_and(|it| *it.value() == key * 2)));
    assert!(table.find(1_000, &1_000).is_none());
    assert!(
        table.iter().all(|entry| table.get(entry.number()).is_some_and(|it| ptr::eq(it, entry)))
    );
    assert!(table.iter().map(|entry| *entry.key()).eq((0..1_000).rev()), "newest first");
}

#[test]
fn eight_threads_that_add_the_same_keys_get_the_same_entries() {
    let table = Interner::new(64).expect("memory");
    let made = AtomicUsize::new(0);
    let addresses: Vec<Vec<usize>> = thread::scope(|scope| {
        let add = || {
            let keys = 0..5_000_u64;
            let count = || made.fetch_add(1, Ordering::Relaxed);
            keys.map(|key| ptr::from_ref(table.intern(key, key, count).expect("memory")).addr())
                .collect()
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(add)).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert!(addresses.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(addresses[0].iter().collect::<BTreeSet<_>>().len(), 5_000);
    assert_eq!((made.into_inner(), table.iter().count()), (5_000, 5_000));
}

#[test]
fn the_table_drops_each_value_once() {
    let alive = AtomicUsize::new(0);
    let table = Interner::new(8).expect("memory");
    assert!(table.is_empty());
    for key in 0..600_u64 {
        assert!(table.intern(key % 8, key, || Counted::new(&alive)).is_some());
    }
    assert_eq!(alive.load(Ordering::Relaxed), 600);
    drop(table);
    assert_eq!(alive.load(Ordering::Relaxed), 0);
}

#[test]
fn more_buckets_than_there_is_memory_for_are_none() {
    assert!(Interner::<u64, ()>::new(usize::MAX / 2).is_none());
    assert!(Interner::<u64, ()>::new(usize::MAX).is_none());
}
