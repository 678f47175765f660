//! Participants and goals.

use pymem_sync::qsbr::{Seq, Shared};
use rstest::rstest;

#[rstest]
#[case::first(Seq::FIRST)]
#[case::before_the_sign_changes(Seq::new(i64::MAX as u64))]
#[case::before_the_wrap(Seq::new(u64::MAX))]
fn a_goal_waits_for_every_attached_participant(#[case] start: Seq) {
    let shared = Shared::starting_at(start);
    let [first, second, idle] = [(); 3].map(|()| shared.register().unwrap());
    first.attach();
    second.attach();
    let goal = shared.advance();
    assert_eq!(goal.seq(), start.next());
    assert!(!shared.poll(goal));
    first.quiescent_state();
    assert!(!shared.poll(goal));
    second.detach();
    assert!(!shared.reached(goal), "nobody has scanned");
    assert!(shared.poll(goal));
    assert!(shared.reached(goal));
    assert!(!idle.is_attached());
    first.detach();
}

#[test]
fn a_deferred_goal_is_the_next_advance() {
    let shared = Shared::new();
    let deferred = shared.next();
    assert!(!shared.poll(deferred), "nobody has advanced");
    assert_eq!(shared.advance(), deferred);
    assert!(shared.poll(deferred));
    assert_ne!(shared.next(), deferred);
}

#[test]
fn a_reader_that_attaches_after_the_advance_is_not_waited_for() {
    let shared = Shared::new();
    let goal = shared.advance();
    let reader = shared.register().unwrap();
    reader.attach();
    assert!(shared.poll(goal));
    reader.detach();
}

#[test]
fn a_quiescent_state_of_a_detached_participant_is_nothing() {
    let shared = Shared::new();
    let reader = shared.register().unwrap();
    let _ = shared.advance();
    reader.quiescent_state();
    assert!(!reader.is_attached());
    reader.detach();
    assert!(!reader.is_attached());
}

#[test]
fn slots_grow_by_chunks_and_are_used_again() {
    let shared = Shared::new();
    assert_eq!(shared.slots(), 8);
    let many: Vec<_> = (0..100).map(|_| shared.register().unwrap()).collect();
    assert_eq!(shared.slots(), 104);
    many.iter().for_each(|participant| participant.attach());
    assert_eq!(shared.attached(), 100);
    let goal = shared.advance();
    for participant in &many {
        assert!(!shared.poll(goal));
        participant.quiescent_state();
    }
    assert!(shared.poll(goal));
    many.iter().for_each(|participant| participant.detach());
    drop(many);
    let again: Vec<_> = (0..104).map(|_| shared.register().unwrap()).collect();
    assert_eq!(shared.slots(), 104);
    drop(again);
}

#[test]
fn a_participant_may_move_to_another_thread() {
    let shared = Shared::new();
    let reader = shared.register().unwrap();
    reader.attach();
    let goal = shared.advance();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let reader = reader;
            reader.quiescent_state();
            reader.detach();
        });
    });
    assert!(shared.poll(goal));
}

#[cfg(debug_assertions)]
mod misuse {
    use super::*;

    #[test]
    #[should_panic(expected = "attach() while attached")]
    fn attaching_twice_is_reported() {
        let shared = Shared::new();
        let reader = shared.register().unwrap();
        reader.attach();
        reader.attach();
    }

    #[test]
    fn dropping_an_attached_participant_is_reported_and_frees_its_slot() {
        let shared = Shared::new();
        let result = std::thread::scope(|scope| {
            let exits = scope.spawn(|| {
                let reader = shared.register().unwrap();
                reader.attach();
            });
            exits.join()
        });
        let message = *result.unwrap_err().downcast::<&str>().unwrap();
        assert!(message.contains("dropped while attached"), "{message}");
        assert_eq!(shared.attached(), 0);
        assert!(shared.poll(shared.advance()));
    }
}
