//! A reader of a published record sees one whole record, and no update of it is lost.
#![cfg(pymem_loom)]

#[path = "model/mod.rs"]
mod model;

use loom::thread;
use model::{Leak, Model, Plain};
use pymem_sync::Published;
use pymem_sync::sync::Site;

/// A context and the function that goes with it.
struct Record {
    context: Plain<usize>,
    function: Plain<usize>,
}

impl Record {
    fn new(number: usize) -> Leak<Self> {
        Leak::new(Self { context: Plain::new(number), function: Plain::new(number) })
    }

    fn whole(&self) -> usize {
        let (context, function) = (self.context.read(), self.function.read());
        assert_eq!(context, function, "half of one record and half of another");
        context
    }
}

#[test]
fn a_reader_sees_one_whole_record() {
    let model = Model {
        name: "a_reader_sees_one_whole_record",
        preemptions: None,
        floor: 10,
        controls: &[Site::PublishedStore, Site::PublishedLoad],
    };
    model.check(|| {
        let first = Record::new(1);
        let published = Leak::new(Published::new(first.get()));
        let shared = published.get();
        let writer = thread::spawn(move || {
            let second = Record::new(0);
            second.get().context.write(2);
            second.get().function.write(2);
            shared.store(second.get());
            second
        });
        assert!([1, 2].contains(&shared.load().whole()));
        let second = writer.join().unwrap();
        assert_eq!(shared.load().whole(), 2);
        published.free();
        first.free();
        second.free();
    });
}

#[test]
fn no_update_is_lost() {
    let model = Model {
        name: "no_update_is_lost",
        preemptions: None,
        floor: 30,
        controls: &[Site::PublishedStore, Site::PublishedLoad, Site::PublishedLost],
    };
    model.check(|| {
        let first = Record::new(0);
        let published = Leak::new(Published::new(first.get()));
        let shared = published.get();
        let count_up = move || {
            // A lost round leaks its record, as `update` says; a handful in all.
            let old = shared.update(|old| Some(Record::new(old.whole() + 1).get()));
            assert!(old.is_ok());
        };
        let other = thread::spawn(count_up);
        count_up();
        other.join().unwrap();
        assert_eq!(shared.load().whole(), 2);
        published.free();
        first.free();
    });
}

#[test]
fn each_swapped_record_comes_out_once_and_whole() {
    let model = Model {
        name: "each_swapped_record_comes_out_once_and_whole",
        preemptions: None,
        floor: 10,
        controls: &[Site::PublishedStore, Site::PublishedLoad],
    };
    model.check(|| {
        let first = Record::new(0);
        let published = Leak::new(Published::new(first.get()));
        let shared = published.get();
        let swap = move |number| {
            let record = Record::new(number);
            (shared.swap(record.get()).whole(), record)
        };
        let other = thread::spawn(move || swap(1));
        let (old, second) = swap(2);
        let (other_old, third) = other.join().unwrap();
        let mut numbers = [old, other_old, shared.load().whole()];
        numbers.sort_unstable();
        assert_eq!(numbers, [0, 1, 2], "lost or doubled");
        published.free();
        [first, second, third].into_iter().for_each(Leak::free);
    });
}
