//! The rack on one thread; `loom_rack` shows the rest.

use std::ptr::NonNull;

use pymem_sync::Rack;

/// Rows 0, 1 and 3 have no room, row 2 that of `room` blocks.
type Rows = Rack<4, 100>;

const ROW: usize = 2;

fn block(number: usize) -> NonNull<u8> {
    NonNull::new(std::ptr::without_provenance_mut(16 * (number + 1))).expect("not null")
}

fn rack(room: usize) -> Rows {
    let rack = Rack::new();
    // SAFETY: (1) the only thread.
    unsafe { rack.lay_out(|row| if row == ROW { room } else { 0 }) };
    rack
}

fn push(rack: &Rows, number: usize) -> bool {
    // SAFETY: (1) the only thread; (2) four rows.
    unsafe { rack.push(ROW, block(number)) }
}

fn pop(rack: &Rows) -> Option<NonNull<u8>> {
    // SAFETY: (1) the only thread; (2) four rows.
    unsafe { rack.pop(ROW) }
}

fn drain(rack: &Rows) -> Vec<NonNull<u8>> {
    // SAFETY: (1) the only thread.
    unsafe { rack.drain(ROW) }.collect()
}

fn fill(rack: &Rows, count: usize, blocks: &[usize]) {
    // SAFETY: (1) the only thread.
    let mut filling = unsafe { rack.fill(ROW, count) };
    blocks.iter().for_each(|number| filling.put(block(*number)));
    filling.finish();
}

#[test]
fn the_last_block_comes_first_and_no_more_fit_than_there_is_room() {
    let rack = rack(3);
    assert_eq!((rack.room(ROW), rack.len(ROW), pop(&rack)), (3, 0, None));
    assert!((0..3).all(|number| push(&rack, number)));
    assert!(!push(&rack, 3));
    assert!(rack.blocks(ROW).eq([0, 1, 2].map(block)));
    assert_eq!(format!("{rack:?}"), "[(0, 0), (0, 0), (3, 3), (0, 0)]");
    assert_eq!(pop(&rack), Some(block(2)));
    assert!(push(&rack, 4));
    for number in [4, 1, 0] {
        assert_ne!(rack.len(ROW), 0);
        assert_eq!(pop(&rack), Some(block(number)));
    }
    assert!(rack.len(ROW) == 0 && pop(&rack).is_none());
}

#[test]
fn a_filling_takes_no_more_than_it_has_room_for() {
    let rack = rack(9);
    // SAFETY: (1) the only thread.
    let mut filling = unsafe { rack.fill(ROW, 4) };
    let mut numbers = 0..9;
    assert_eq!((filling.extend(numbers.by_ref().take(1).map(block)), filling.left()), (1, 3));
    assert_eq!((filling.extend(numbers.by_ref().map(block)), filling.left()), (3, 0));
    filling.finish();
    assert_eq!(numbers.next(), Some(4), "the next block is still there");
    assert!(rack.blocks(ROW).eq([3, 2, 1, 0].map(block)), "the first comes first");
}

#[test]
fn what_a_magazine_is_filled_with_comes_in_order() {
    let rack = rack(3);
    fill(&rack, 3, &[0, 1]);
    assert_eq!([pop(&rack), pop(&rack), pop(&rack)], [Some(block(0)), Some(block(1)), None]);
    fill(&rack, 9, &[4, 5, 6, 7]);
    assert!(rack.blocks(ROW).eq([6, 5, 4].map(block)), "no more than there is room");
    assert_eq!(drain(&rack).len(), 3);
    fill(&rack, 1, &[8, 9]);
    assert!(rack.blocks(ROW).eq([block(8)]), "no more than asked for");
    // SAFETY: (1) the only thread.
    let filling = unsafe { rack.fill(4, 1) };
    assert_eq!(format!("{filling:?}"), "Filling { left: 0, .. }", "there are four rows");
    filling.finish();
}

#[test]
fn rows_share_the_places_and_have_none_of_each_other() {
    let rack: Rack<3, 10> = Rack::default();
    // SAFETY: (1) the only thread; (2) three rows.
    assert!((0..3).all(|row| unsafe { !rack.push(row, block(0)) }), "no room yet");
    // SAFETY: (1) the only thread.
    unsafe { rack.lay_out(|_| 4) };
    assert_eq!([0, 1, 2, 3].map(|row| rack.room(row)), [4, 4, 2, 0], "what is left");
    for row in 0..3 {
        // SAFETY: (1) the only thread; (2) three rows.
        while unsafe { rack.push(row, block(row)) } {}
        // SAFETY: (1) the only thread.
        unsafe { rack.grow(row) };
    }
    for (row, len) in [4, 4, 2, 0].into_iter().enumerate() {
        assert_eq!((rack.len(row), rack.room(row)), (len, len));
        assert!(rack.blocks(row).all(|found| found == block(row)));
    }
}

#[test]
fn room_doubles_up_to_the_limit_and_shrinks_at_once() {
    let rack = rack(50);
    let grown = [(); 4].map(|()| {
        let room = rack.room(ROW);
        // SAFETY: (1) the only thread.
        unsafe { rack.grow(ROW) };
        room
    });
    assert_eq!(grown, [16, 32, 50, 50]);
    assert_eq!((0..100).filter(|number| push(&rack, *number)).count(), 50);
    assert_eq!(drain(&rack).len(), 50);
    // SAFETY: (1) the only thread.
    unsafe { rack.shrink(ROW) };
    assert_eq!((0..100).filter(|number| push(&rack, *number)).count(), 16);
}

#[test]
fn a_drain_takes_all_blocks_in_the_order_in_which_they_came() {
    let rack = rack(5);
    assert!((0..5).all(|number| push(&rack, number)));
    assert_eq!(drain(&rack), [0, 1, 2, 3, 4].map(block));
    assert!(drain(&rack).is_empty() && rack.len(ROW) == 0 && push(&rack, 5));
    // SAFETY: (1) the only thread.
    assert_eq!(unsafe { rack.drain(4) }.count(), 0, "there are four rows");
}

/// As many places as a row asks for, or what is left, however many it asks for.
#[test]
fn no_place_belongs_to_two_rows() {
    for limits in [[usize::MAX; 4], [1, usize::MAX, usize::MAX, 1], [90, 0, usize::MAX, 100]] {
        let rack = Rows::new();
        // SAFETY: (1) the only thread.
        unsafe { rack.lay_out(|row| limits[row]) };
        let mut left = 100;
        for (row, limit) in limits.into_iter().enumerate() {
            for _ in 0..10 {
                // SAFETY: (1) the only thread.
                unsafe { rack.grow(row) };
            }
            assert_eq!(rack.room(row), left.min(limit), "{limits:?}, row {row}");
            left -= rack.room(row);
        }
    }
}
