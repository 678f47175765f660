//! The next size of `loom_remote_stack`, two blocks a pusher, up to 4 preemptions.
#![cfg(pymem_loom)]

#[path = "model/heap.rs"]
mod heap;
#[path = "model/mod.rs"]
mod model;

use heap::two_pushers;
use model::Model;
use pymem_sync::sync::Site;

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
