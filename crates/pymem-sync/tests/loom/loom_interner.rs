//! A key that two threads add has one entry, and whoever finds an entry reads it as it was written.

use loom::thread;
use pymem_sync::sync::Site;
use pymem_sync::{Chain, Interner};

use crate::model::{Leak, Model, Plain};

type Table = Interner<u64, Plain<u64>>;

/// The value of `key`, which is added if need be; every key shares one bucket.
fn value(table: &'static Table, key: u64) -> u64 {
    table.intern(0, key, || Plain::new(key + 1)).map_or(0, |entry| entry.value().read())
}

#[test]
fn a_key_has_one_entry_and_a_finder_reads_it_whole() {
    let model = Model {
        name: "a_key_has_one_entry_and_a_finder_reads_it_whole",
        preemptions: None,
        floor: 100,
        controls: &[Site::InternerLink, Site::InternerFind],
    };
    model.check(|| {
        let table = Leak::new(Table::new(1).unwrap());
        let shared = table.get();
        let other = thread::spawn(move || value(shared, 7));
        assert_eq!(value(shared, 7), 8);
        assert_eq!(other.join().unwrap(), 8);
        assert_eq!(shared.iter().count(), 1, "a key twice, or lost");
        table.free();
    });
}

/// A chain is a bucket elsewhere.
#[test]
fn a_key_of_a_chain_has_one_entry() {
    let model = Model {
        name: "a_key_of_a_chain_has_one_entry",
        preemptions: None,
        floor: 100,
        controls: &[Site::InternerLink, Site::InternerFind],
    };
    model.check(|| {
        let both = Leak::new((Table::new(1).unwrap(), Chain::new()));
        let shared = both.get();
        let value = move || {
            let (table, chain) = shared;
            // SAFETY: 1: the one table.
            let entry = unsafe { table.intern_in(chain, 7, || Plain::new(8)) };
            entry.map_or(0, |entry| entry.value().read())
        };
        let other = thread::spawn(value);
        assert_eq!(value(), 8);
        assert_eq!(other.join().unwrap(), 8);
        assert_eq!(shared.0.iter().count(), 1, "a key twice, or lost");
        both.free();
    });
}

#[test]
fn keys_of_one_bucket_are_both_found() {
    let model = Model {
        name: "keys_of_one_bucket_are_both_found",
        preemptions: None,
        floor: 100,
        controls: &[Site::InternerLink],
    };
    model.check(|| {
        let table = Leak::new(Table::new(1).unwrap());
        let shared = table.get();
        let other = thread::spawn(move || value(shared, 7));
        assert_eq!(value(shared, 8), 9);
        assert_eq!(other.join().unwrap(), 8);
        assert!([7, 8].iter().all(|key| shared.find(0, key).is_some()), "a key was lost");
        table.free();
    });
}

#[test]
fn a_walk_reads_whole_entries() {
    let model = Model {
        name: "a_walk_reads_whole_entries",
        preemptions: None,
        floor: 10,
        controls: &[Site::InternerList, Site::InternerWalk],
    };
    model.check(|| {
        let table = Leak::new(Table::new(1).unwrap());
        let shared = table.get();
        let other = thread::spawn(move || value(shared, 7));
        for entry in shared.iter() {
            assert_eq!(entry.value().read(), entry.key() + 1);
        }
        assert_eq!(other.join().unwrap(), 8);
        table.free();
    });
}
