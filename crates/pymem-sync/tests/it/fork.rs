//! A fork leaves the child with the caller alone. (The fork itself is played: one thread, and participants that no one will
//! use again.)

use pymem_sync::qsbr::Shared;

#[test]
fn the_dead_hold_nothing_back_and_their_slots_are_used_again() {
    let shared = Shared::new();
    let survivor = shared.register().unwrap();
    survivor.attach();
    let dead: Vec<_> = (0..20).map(|_| shared.register().unwrap()).collect();
    dead.iter().for_each(|participant| participant.attach());
    let slots = shared.slots();
    let goal = shared.advance();
    // SAFETY: (1) there is one thread; (2) the survivor is its own; (3) the dead are only dropped.
    unsafe { shared.after_fork_in_child(Some(&survivor)) };
    assert_eq!(shared.attached(), 1);
    assert!(survivor.is_attached());
    assert!(!shared.poll(goal), "the survivor still counts");
    survivor.quiescent_state();
    assert!(shared.poll(goal));

    let new: Vec<_> = (0..20).map(|_| shared.register().unwrap()).collect();
    assert_eq!(shared.slots(), slots, "the dead threads' slots");
    new.iter().for_each(|participant| participant.attach());
    drop(dead); // as a runtime does that cleans up dead thread states
    assert_eq!(shared.attached(), 21, "dropping the dead took no slot from the living");
    new.iter().for_each(|participant| participant.detach());
    survivor.detach();
}

#[test]
fn a_child_may_have_no_participant() {
    let shared = Shared::new();
    let dead = shared.register().unwrap();
    dead.attach();
    // SAFETY: (1) there is one thread; (2) none; (3) the dead one is only dropped.
    unsafe { shared.after_fork_in_child(None) };
    assert_eq!(shared.attached(), 0);
    assert!(shared.poll(shared.advance()));
    drop(dead);
}
