//! The magazine on one thread; `loom_magazine` shows the rest.

use std::ptr::NonNull;

use pymem_sync::{MAGAZINE_BLOCKS, Magazine};

fn block(number: usize) -> NonNull<u8> {
    NonNull::new(std::ptr::without_provenance_mut(16 * (number + 1))).expect("not null")
}

fn push(magazine: &Magazine, number: usize) -> bool {
    // SAFETY: (1) the only thread.
    unsafe { magazine.push(block(number)) }
}

fn pop(magazine: &Magazine) -> Option<NonNull<u8>> {
    // SAFETY: (1) the only thread.
    unsafe { magazine.pop() }
}

#[test]
fn the_last_block_comes_first_and_no_more_fit_than_there_is_room() {
    let magazine = Magazine::new(3);
    assert_eq!((magazine.room(), magazine.len(), pop(&magazine)), (3, 0, None));
    assert!((0..3).all(|number| push(&magazine, number)));
    assert!(!push(&magazine, 3));
    assert!(magazine.blocks().eq([0, 1, 2].map(block)));
    assert_eq!(format!("{magazine:?}"), "Magazine { len: 3, room: 3, .. }");
    assert_eq!(pop(&magazine), Some(block(2)));
    assert!(push(&magazine, 4));
    for number in [4, 1, 0] {
        assert!(!magazine.is_empty());
        assert_eq!(pop(&magazine), Some(block(number)));
    }
    assert!(magazine.is_empty() && pop(&magazine).is_none());
}

#[test]
fn what_a_magazine_is_filled_with_comes_in_order() {
    let magazine = Magazine::new(3);
    // SAFETY: (1) the only thread.
    unsafe { magazine.fill(&[0, 1].map(block)) };
    assert_eq!(
        [pop(&magazine), pop(&magazine), pop(&magazine)],
        [Some(block(0)), Some(block(1)), None]
    );
    // SAFETY: (1) the only thread.
    unsafe { magazine.fill(&[4, 5, 6, 7].map(block)) };
    assert!(magazine.blocks().eq([6, 5, 4].map(block)), "no more than there is room");
}

#[test]
fn room_has_bounds() {
    assert!(!push(&Magazine::new(0), 0));
    let magazine = Magazine::new(100);
    assert_eq!((0..100).filter(|number| push(&magazine, *number)).count(), MAGAZINE_BLOCKS);
}

#[test]
fn a_drain_takes_what_came_first_and_leaves_the_rest_in_order() {
    let magazine = Magazine::new(5);
    assert!((0..5).all(|number| push(&magazine, number)));
    let mut drained = Vec::new();
    // SAFETY: (1) the only thread.
    unsafe { magazine.drain(2, |block| drained.push(block)) };
    assert_eq!(drained, [0, 1].map(block));
    assert!(magazine.blocks().eq([2, 3, 4].map(block)));
    // SAFETY: (1) the only thread.
    unsafe { magazine.drain(9, |block| drained.push(block)) };
    assert_eq!(drained, [0, 1, 2, 3, 4].map(block));
    assert!(magazine.is_empty());
}
