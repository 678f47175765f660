//! The next size of `loom_remote_stack`, two blocks a pusher, up to 4 preemptions.

use pymem_sync::sync::Site;

use crate::heap::two_pushers;
use crate::model::Model;

#[test]
fn two_pushers_of_two_blocks() {
    let model = Model {
        name: "two_pushers_of_two_blocks",
        preemptions: Some(4),
        floor: 25_000,
        controls: &[Site::StackPush, Site::StackDrain],
    };
    model.check(two_pushers::<2, 4>);
}
