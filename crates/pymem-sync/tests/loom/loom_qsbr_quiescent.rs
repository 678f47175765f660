//! A reader that attached before the advance is never passed: a goal waits for its quiescent state, and its reads from
//! before come before the free.

use pymem_sync::qsbr::Collector;
use pymem_sync::sync::Site;

use crate::cell::reclaim_beside_a_reader;
use crate::model::Model;

#[test]
fn a_reader_from_before_the_advance_is_not_passed() {
    let model = Model {
        name: "a_reader_from_before_the_advance_is_not_passed",
        preemptions: None,
        floor: 2_000,
        controls: &[Site::QsbrQuiescent, Site::QsbrScan, Site::QsbrAdvance],
    };
    model.check(|| {
        reclaim_beside_a_reader(Collector::new());
    });
}
