//! The pool of abandoned things on one thread; `loom_abandoned_pool` shows the rest.

use pymem_sync::{AbandonedPool, Node, Owned};

#[test]
fn the_last_thing_given_is_the_first_taken() {
    let mut nodes = [1, 2, 3].map(Node::new);
    let pool = AbandonedPool::new();
    assert!(pool.is_empty());
    for node in &mut nodes {
        pool.give(Owned::new(node));
    }
    let taken: Vec<u32> = std::iter::from_fn(|| pool.take()).map(|owned| *owned).collect();
    assert_eq!(taken, [3, 2, 1]);
    assert!(pool.is_empty());
}

#[test]
fn a_thing_survives_as_an_address() {
    let mut node = Node::new(String::from("heap"));
    let raw = Owned::new(&mut node).into_raw();
    // SAFETY: (1) from above, once; (2) the node is borrowed as long.
    let mut owned = unsafe { Owned::from_raw(raw) };
    owned.push('!');
    assert_eq!(format!("{owned:?}"), "Owned(\"heap!\")");
    assert_eq!(node.into_inner(), "heap!");
}

#[test]
fn the_version_wraps_without_touching_the_address() {
    let mut node = Node::new(7);
    let pool = AbandonedPool::new();
    let mut owned = Owned::new(&mut node);
    for _ in 0..(1 << 23) + 3 {
        pool.give(owned);
        owned = pool.take().unwrap();
    }
    assert_eq!(*owned, 7);
}
