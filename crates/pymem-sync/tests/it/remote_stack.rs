//! The remote-free stack on one thread; `loom_remote_stack` shows the rest.

use std::ptr::NonNull;

use pymem_sync::RemoteStack;

fn push(stack: &RemoteStack, word: &mut usize) {
    // SAFETY: (1) a word; (2) the tests do not touch it until it is drained.
    unsafe { stack.push(NonNull::from(word).cast()) };
}

#[test]
fn blocks_come_back_newest_first() {
    let stack = RemoteStack::new();
    let mut words = [0_usize; 3];
    let addresses = words.each_mut().map(|word| NonNull::from(word).cast::<u8>());
    assert!(stack.is_empty());
    words.iter_mut().for_each(|word| push(&stack, word));
    assert!(!stack.is_empty());
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
