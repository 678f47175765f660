//! The remote-free stack on one thread; `loom_remote_stack` and `loom_abandon_adopt` show the rest.

use std::ptr::NonNull;

use pymem_sync::{Pushed, RemoteStack};

fn push(stack: &RemoteStack, word: &mut usize) -> Pushed {
    // SAFETY: (1) a word; (2) the tests do not touch it until it is drained.
    unsafe { stack.push(NonNull::from(word).cast()) }
}

#[test]
fn blocks_come_back_newest_first() {
    let stack = RemoteStack::new();
    let mut words = [0_usize; 3];
    let addresses = words.each_mut().map(|word| NonNull::from(word).cast::<u8>());
    assert!(stack.is_empty());
    assert_eq!(push(&stack, &mut words[0]), Pushed { was_empty: true, ownerless: false });
    assert_eq!(push(&stack, &mut words[1]), Pushed { was_empty: false, ownerless: false });
    push(&stack, &mut words[2]);
    let drained: Vec<_> = stack.drain().collect();
    assert_eq!(drained, [addresses[2], addresses[1], addresses[0]]);
    assert_eq!(stack.drain().count(), 0);
}

#[test]
fn what_a_drain_leaves_goes_back() {
    let stack = RemoteStack::new();
    let mut words = [0_usize; 3];
    for word in &mut words {
        push(&stack, word);
    }
    assert!(stack.drain().next().is_some());
    assert_eq!(stack.drain().count(), 2);
}

#[test]
fn an_ownerless_stack_keeps_its_blocks_for_one_adopter() {
    let stack = RemoteStack::new();
    let mut words = [0_usize; 3];
    assert!(stack.adopt().is_none(), "it has an owner");
    push(&stack, &mut words[0]);
    assert!(stack.abandon(), "a block waits");
    assert!(stack.abandon(), "again changes nothing");
    assert_eq!(push(&stack, &mut words[1]), Pushed { was_empty: false, ownerless: true });
    assert!(stack.is_ownerless());
    assert_eq!(stack.drain().count(), 0, "not for a thread that is not the owner");
    assert_eq!(stack.adopt().unwrap().count(), 2);
    assert!(!stack.is_ownerless());
    assert!(stack.adopt().is_none());
    assert_eq!(push(&stack, &mut words[2]), Pushed { was_empty: true, ownerless: false });
    assert_eq!(stack.drain().count(), 1);
    assert!(!stack.abandon(), "nothing waits");
}
