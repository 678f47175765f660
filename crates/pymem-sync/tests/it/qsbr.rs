//! Participants and goals.

use pymem_sync::qsbr::{Collector, Participant, Seq};
use rstest::rstest;

#[rstest]
#[case::first(Seq::FIRST)]
#[case::before_the_sign_changes(Seq::new(i64::MAX as u64))]
#[case::before_the_wrap(Seq::new(u64::MAX))]
fn a_goal_waits_for_every_attached_participant(#[case] start: Seq) {
    let collector = &Collector::starting_at(start);
    let [first, second, idle] = [(); 3].map(|()| Participant::register(collector).unwrap());
    first.attach();
    second.attach();
    let goal = collector.advance();
    assert_eq!(goal.seq(), start.next());
    assert!(!collector.poll(goal));
    first.quiescent_state();
    assert!(!collector.poll(goal));
    second.detach();
    assert!(!collector.reached(goal), "nobody has scanned");
    assert!(collector.poll(goal));
    assert!(collector.reached(goal));
    assert!(!idle.is_attached());
    first.detach();
}

#[test]
fn a_deferred_goal_is_the_next_advance() {
    let collector = &Collector::new();
    let deferred = collector.next();
    assert!(!collector.poll(deferred), "nobody has advanced");
    assert_eq!(collector.advance(), deferred);
    assert!(collector.poll(deferred));
    assert_ne!(collector.next(), deferred);
}

#[test]
fn a_reader_that_attaches_after_the_advance_is_not_waited_for() {
    let collector = &Collector::new();
    let goal = collector.advance();
    let reader = Participant::register(collector).unwrap();
    reader.attach();
    assert!(collector.poll(goal));
    reader.detach();
}

#[test]
fn a_quiescent_state_of_a_detached_participant_is_nothing() {
    let collector = &Collector::new();
    let reader = Participant::register(collector).unwrap();
    let _ = collector.advance();
    reader.quiescent_state();
    assert!(!reader.is_attached());
    reader.detach();
    assert!(!reader.is_attached());
}

#[test]
fn slots_grow_by_chunks_and_are_used_again() {
    let collector = &Collector::new();
    assert_eq!(collector.slots(), 8);
    let many: Vec<_> = (0..100).map(|_| Participant::register(collector).unwrap()).collect();
    assert_eq!(collector.slots(), 104);
    many.iter().for_each(|participant| participant.attach());
    assert_eq!(collector.attached(), 100);
    let goal = collector.advance();
    for participant in &many {
        assert!(!collector.poll(goal));
        participant.quiescent_state();
    }
    assert!(collector.poll(goal));
    many.iter().for_each(|participant| participant.detach());
    drop(many);
    let again: Vec<_> = (0..104).map(|_| Participant::register(collector).unwrap()).collect();
    assert_eq!(collector.slots(), 104);
    drop(again);
}

#[test]
fn a_participant_may_move_to_another_thread() {
    let collector = &Collector::new();
    let reader = Participant::register(collector).unwrap();
    reader.attach();
    let goal = collector.advance();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let reader = reader;
            reader.quiescent_state();
            reader.detach();
        });
    });
    assert!(collector.poll(goal));
}

#[cfg(debug_assertions)]
mod misuse {
    use super::*;

    #[test]
    #[should_panic(expected = "attach() while attached")]
    fn attaching_twice_is_reported() {
        let collector = &Collector::new();
        let reader = Participant::register(collector).unwrap();
        reader.attach();
        reader.attach();
    }

    #[test]
    fn dropping_an_attached_participant_is_reported_and_frees_its_slot() {
        let collector = &Collector::new();
        let result = std::thread::scope(|scope| {
            let exits = scope.spawn(|| {
                let reader = Participant::register(collector).unwrap();
                reader.attach();
            });
            exits.join()
        });
        let message = *result.unwrap_err().downcast::<&str>().unwrap();
        assert!(message.contains("dropped while attached"), "{message}");
        assert_eq!(collector.attached(), 0);
        assert!(collector.poll(collector.advance()));
    }
}
