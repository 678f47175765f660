//! Owns where the header of an arena lies: a page of the first unit, which begins with the records of the pools. Leaves the records to
//! `pool.rs`, and the rest of the header to `arena.rs`.

use core::ops::Range;

use crate::config::{
    ARENA_BYTES, ARENA_UNITS, GRAIN_BYTES, HUGE_PAGE_BYTES, PAGE_BYTES, POOL_BYTES, POOL_SHIFT,
};

/// Binary logarithm of a record's bytes.
pub(crate) const RECORD_SHIFT: u32 = 5;

/// Pages of an arena's first unit.
const WINDOWS: usize = POOL_BYTES / PAGE_BYTES;
const _: () = assert!(WINDOWS.is_power_of_two());

/// How far down in an address the number of a unit moves to be the offset of its record, and with it that of an arena's pair to be
/// the page of the header: both by one shift.
const TO_RECORD_SHIFT: u32 = POOL_SHIFT - RECORD_SHIFT;
const TURN_MASK: usize = (WINDOWS - 1) * PAGE_BYTES;
const RECORD_MASK: usize = (ARENA_UNITS - 1) << RECORD_SHIFT;
const _: () = assert!(PAGE_BYTES << TO_RECORD_SHIFT == HUGE_PAGE_BYTES, "pairs take turns");

/// Address of the header, which begins with the records, in an arena whose first unit is at `first_unit`.
#[inline(always)]
pub(crate) const fn header_address(first_unit: usize) -> usize {
    first_unit + (first_unit >> TO_RECORD_SHIFT & TURN_MASK)
}

/// Address of the record of the unit in which `address` lies, in an arena that begins at a multiple of its size.
#[inline(always)]
pub(crate) const fn record_address(address: usize) -> usize {
    (address & !(ARENA_BYTES - 1)) + (address >> TO_RECORD_SHIFT & (TURN_MASK | RECORD_MASK))
}

/// Where the two differ, each free takes the slow way, and nothing else shows.
const _: () = {
    let mut unit = 0;
    while unit < 2 * WINDOWS * ARENA_UNITS {
        let (arena, record) =
            (unit / ARENA_UNITS * ARENA_BYTES, (unit % ARENA_UNITS) << RECORD_SHIFT);
        let found = record_address((unit << POOL_SHIFT) + GRAIN_BYTES);
        assert!(found == header_address(arena) + record, "records are in the header");
        unit += 1;
    }
};

/// The parts of `from..to`, offsets from an arena's first unit at `first_unit`, that are before and behind the header, if there are any.
pub(crate) fn beside_header(
    first_unit: usize,
    from: usize,
    to: usize,
) -> impl Iterator<Item = Range<usize>> {
    let header = header_address(first_unit) - first_unit;
    let parts = [from..to.min(header), from.max(header + PAGE_BYTES)..to];
    parts.into_iter().filter(|part| !part.is_empty())
}

/// Where in the header the idle maps begin.
pub(crate) const IDLE_OFFSET: usize = ARENA_UNITS << RECORD_SHIFT;
