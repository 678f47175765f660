//! A reader of a published record sees one whole record.

use loom::thread;
use pymem_sync::Published;
use pymem_sync::sync::Site;

use crate::model::{Leak, Model, Plain};

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
