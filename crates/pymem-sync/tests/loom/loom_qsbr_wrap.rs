//! The sequence wraps round: a reader from before the wrap is not passed by a goal after it.

use pymem_sync::qsbr::{Collector, Seq};
use pymem_sync::sync::Site;

use crate::cell::reclaim_beside_a_reader;
use crate::model::Model;

#[test]
fn a_goal_after_the_wrap_waits_for_a_reader_from_before() {
    let model = Model {
        name: "a_goal_after_the_wrap_waits_for_a_reader_from_before",
        preemptions: None,
        floor: 2_000,
        controls: &[Site::QsbrWrap, Site::QsbrQuiescent],
    };
    model.check(|| {
        let goal = reclaim_beside_a_reader(Collector::starting_at(Seq::new(u64::MAX)));
        assert_eq!(goal.seq(), Seq::FIRST);
    });
}
