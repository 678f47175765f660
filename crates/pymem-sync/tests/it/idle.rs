//! Idle units on one thread: when their memory goes, and what is left of it.

use pymem_sync::{IdleUnits, Keeper};

/// Ends a period; what was given back.
fn end_period(units: &IdleUnits, keeper: &Keeper) -> u64 {
    let mut given_back = 0;
    units.give_back(keeper, |due| given_back = due);
    given_back
}

#[test]
fn a_unit_waits_for_a_whole_period() {
    let (units, keeper) = (IdleUnits::new(), Keeper::new());
    assert_eq!(end_period(&units, &keeper), 0, "nothing was offered");
    units.offer(0b011, &keeper);
    assert_eq!(end_period(&units, &keeper), 0, "a part of a period at most");
    units.offer(0b100, &keeper);
    assert_eq!(units.waiting(&keeper), 0b111);
    assert_eq!(end_period(&units, &keeper), 0b011);
    assert_eq!(units.waiting(&keeper), 0b100);
    assert_eq!(end_period(&units, &keeper), 0b100);
    assert_eq!((units.waiting(&keeper), end_period(&units, &keeper)), (0, 0));
}

#[test]
fn what_is_taken_back_in_time_is_as_it_was_left() {
    let (units, keeper) = (IdleUnits::new(), Keeper::new());
    units.offer(0b1111, &keeper);
    assert_eq!(units.take_back(0b0001, &keeper), 0b0001, "young");
    assert_eq!(end_period(&units, &keeper), 0);
    assert_eq!(units.take_back(0b0010, &keeper), 0b0010, "old");
    units.offer(0b0001, &keeper);
    assert_eq!(units.take_back(0b0101, &keeper), 0b0101, "one of each");
    assert_eq!(end_period(&units, &keeper), 0b1000);
    units.offer(0b0001, &keeper);
    assert_eq!(units.take_back(0b1001, &keeper), 0b0001, "the memory of the other one is gone");
    assert_eq!(units.waiting(&keeper), 0);
}

#[test]
fn a_keeper_sleeps_while_nothing_waits() {
    let (units, keeper) = (IdleUnits::new(), Keeper::new());
    assert!(!units.offer(0b1, &keeper), "nobody is awake");
    assert!(keeper.wake() && !keeper.wake() && keeper.is_awake());
    assert!(units.offer(0b10, &keeper));
    assert!(!keeper.rest(|| [&units]) && keeper.is_awake(), "two units wait");
    assert_eq!(units.take_back(0b11, &keeper), 0b11);
    assert!(keeper.rest(|| [&units]) && !keeper.is_awake());
    assert!(keeper.wake());
    units.offer(0b1, &keeper);
    keeper.stop();
    assert!(!keeper.is_awake() && units.waiting(&keeper) == 0b1);
}
