//! Owns one arena: its header, the records of its pools, and which pools are free. Leaves a record's content and place to
//! `pool.rs`, the order of arenas to `arenas.rs`.
//!
//! ```text
//!  address (any alignment)
//!  v
//!  +--------+----------------+---------+---------+-- --+---------+--------+
//!  | slack  | unit 0         | unit 1  | unit 2  | ... | unit 63 | slack  |
//!  |        | Arena and pool | pool    | pool    |     | pool    |        |
//!  +--------+----------------+---------+---------+-- --+---------+--------+
//!           ^ first unit, aligned to POOL_BYTES; slack and the last unit: one or the other
//! ```
//!
//! A pool is one unit, or for classes above 2048 bytes a pair that begins at an even number. Both kinds share an arena, so
//! that a program has one arena that is filled in part, not two. Units 0 and 1 can hold single ones only.
//!
//! Unit 0 has four pages. One holds the header with the pools' records, which every call reads, and their idle maps; the
//! others hold blocks of a pool like any other, of which the blocks in the header's place are missing. The number of the arena's pair
//! says which page it is. Arenas begin at multiples of 1 MiB: at the same place in each, the records of a whole heap would share a few sets of
//! the cache.

use core::ptr::NonNull;

use crate::config::{ARENA_BYTES, ARENA_UNITS, PAGE_BYTES, PAIR_UNITS, POOL_BYTES, POOL_SHIFT};
use crate::header::{IDLE_OFFSET, header_address};
use crate::idle_map::IdleMap;
use crate::lane::Lane;
use crate::pool::{Pool, PoolPtr};
use crate::size_class::SizeClass;

/// What a pool consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// One unit.
    Single = 0,
    /// A pair.
    Pair = 1,
}

impl Kind {
    pub(crate) const ALL: [Self; 2] = [Self::Single, Self::Pair];

    pub(crate) const fn of(class: SizeClass) -> Self {
        if class.geometry().units as usize == 1 { Self::Single } else { Self::Pair }
    }

    pub(crate) const fn units(self) -> usize {
        match self {
            Self::Single => 1,
            Self::Pair => PAIR_UNITS,
        }
    }

    /// The bits of the units of such a pool that begins at `unit`.
    pub(crate) const fn mask(self, unit: usize) -> u64 {
        ((1 << self.units()) - 1) << unit
    }

    /// The `units` at which such a pool can begin.
    const fn starts(self, units: u64) -> u64 {
        match self {
            Self::Single => units,
            Self::Pair => units & units >> 1 & PAIR_STARTS,
        }
    }
}

/// Bits of the units that begin a pair; the first of them has the header.
const PAIR_STARTS: u64 = 0x5555_5555_5555_5554;
const _: () = assert!(PAIR_UNITS == 2, "two neighbouring bits");

/// An arena's place in one list of `arenas.rs`.
#[derive(Clone, Copy, Default)]
pub(crate) struct Links {
    pub(crate) next: Option<ArenaPtr>,
    pub(crate) prev: Option<ArenaPtr>,
}

/// An arena's header: the records of its pools and their idle maps, then what concerns the arena.
#[repr(C)]
pub(crate) struct Arena {
    /// Invariant 3: at the start of a page of unit 0.
    pools: [Pool; ARENA_UNITS],
    idle: [IdleMap; ARENA_UNITS],
    /// Where the source put the arena.
    address: NonNull<u8>,
    /// Address of unit 0, `address` rounded up to `POOL_BYTES`.
    first_unit: NonNull<u8>,
    /// Neighbours in the lists of `arenas.rs`: for pools of each kind, and of all arenas.
    links: [Links; 3],
    /// Invariant 1: bit u is set if unit u is in no pool.
    free: u64,
    /// Invariant 2: a subset of `free`: units whose memory is resident, because it was used or populated.
    resident: u64,
    /// Did the source make this arena (else a record that was set at run time)?
    from_source: bool,
    /// Does memory come ahead of need, where it is not resident?
    is_hasty: bool,
    /// Units that fit, 64 or 63.
    units: u8,
    /// Whose pools are opened here; of an empty arena nobody's.
    lane: Lane,
}

const _: () = assert!(size_of::<Arena>() <= PAGE_BYTES);
const _: () = assert!(core::mem::offset_of!(Arena, idle) == IDLE_OFFSET);

/// The header of a live arena of the allocator at hand.
///
/// Invariant: made by [`ArenaPtr::init`] and [`ArenaPtr::from_header`] alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub(crate) struct ArenaPtr(NonNull<Arena>);

impl ArenaPtr {
    /// Writes the header of a new arena.
    ///
    /// # Safety
    ///
    /// 1. `address` is valid for reads and writes of `ARENA_BYTES` bytes, nobody else uses them, and they stay so
    ///    while this handle, or a copy, is used.
    /// 2. If `zeroed`, they are zero.
    pub(crate) unsafe fn init(address: NonNull<u8>, zeroed: bool, from_source: bool) -> Self {
        // For `PoolPtr::of_block`.
        let slack = address.as_ptr().expose_provenance().wrapping_neg() % POOL_BYTES;
        // SAFETY: 1; slack is less than a pool, which an arena is longer than.
        let first_unit = unsafe { address.add(slack) };
        let window = header_address(first_unit.addr().get()) - first_unit.addr().get();
        // SAFETY: 1; a page of unit 0, into which the header fits (asserted above).
        let header = unsafe { first_unit.add(window) }.cast::<Arena>();
        let arena = header.as_ptr();
        if !zeroed {
            // SAFETY: 1; the header's page.
            unsafe { header.cast::<u8>().write_bytes(0, PAGE_BYTES) };
        }
        let units = if slack == 0 { ARENA_UNITS } else { ARENA_UNITS - 1 };
        // SAFETY: 1, 2: the bytes are zero, which is a valid `Arena` but for its two `NonNull`s and so is
        // referred to by field until they are written.
        unsafe { (*arena).address = address };
        // SAFETY: as above.
        unsafe { (*arena).first_unit = first_unit };
        let mut this = Self(header);
        let fields = this.get_mut();
        fields.from_source = from_source;
        fields.units = units as u8;
        let all_units = this.all_units();
        this.get_mut().free = all_units;
        this
    }

    /// The handle of the arena whose header is at `header`.
    ///
    /// # Safety
    ///
    /// 1. `init` wrote a header there, and its promises still hold.
    #[inline]
    pub(crate) unsafe fn from_header(header: NonNull<u8>) -> Self {
        Self(header.cast())
    }

    #[inline]
    fn get(&self) -> &Arena {
        // SAFETY: `init` 1: mapped, initialised, and only used by the allocator that holds the handle.
        unsafe { self.0.as_ref() }
    }

    #[inline]
    fn get_mut(&mut self) -> &mut Arena {
        // SAFETY: `init` 1; each borrow ends inside the method that took it.
        unsafe { self.0.as_mut() }
    }

    pub(crate) fn address(self) -> NonNull<u8> {
        self.get().address
    }

    pub(crate) fn is_from_source(self) -> bool {
        self.get().from_source
    }

    pub(crate) fn is_hasty(self) -> bool {
        self.get().is_hasty
    }

    pub(crate) fn set_hasty(mut self, is_hasty: bool) {
        self.get_mut().is_hasty = is_hasty;
    }

    /// The lane whose pools are opened here.
    pub(crate) fn lane(self) -> Lane {
        self.get().lane
    }

    pub(crate) fn set_lane(mut self, lane: Lane) {
        self.get_mut().lane = lane;
    }

    /// The units that pools can have.
    fn all_units(self) -> u64 {
        u64::MAX >> (64 - self.get().units)
    }

    /// Units that pools can have, free or not.
    pub(crate) fn units(self) -> usize {
        usize::from(self.get().units)
    }

    /// Are all units free?
    pub(crate) fn is_empty(self) -> bool {
        self.get().free == self.all_units()
    }

    /// Number of places for a pool of `kind`.
    pub(crate) fn free_places(self, kind: Kind) -> usize {
        kind.starts(self.get().free).count_ones() as usize
    }

    /// Whether a place for a pool of `kind` has memory.
    pub(crate) fn has_resident_place(self, kind: Kind) -> bool {
        kind.starts(self.get().resident) != 0
    }

    /// The free units.
    pub(crate) fn free_mask(self) -> u64 {
        self.get().free
    }

    pub(crate) fn resident_mask(self) -> u64 {
        self.get().resident
    }

    /// Bytes that no pool can use: slack at both ends.
    pub(crate) fn alignment_bytes(self) -> usize {
        ARENA_BYTES - self.units() * POOL_BYTES
    }

    /// Address of `unit`.
    #[inline]
    pub(crate) fn unit_address(self, unit: usize) -> NonNull<u8> {
        let first = self.get().first_unit;
        // SAFETY: `init` 1; callers' units are below `units`, so the address is in the arena.
        unsafe { first.add(unit << POOL_SHIFT) }
    }

    /// The unit in which `address` lies; `None` outside of the units.
    #[inline]
    pub(crate) fn unit_of(self, address: usize) -> Option<usize> {
        let unit = address.wrapping_sub(self.get().first_unit.addr().get()) >> POOL_SHIFT;
        (unit < usize::from(self.get().units)).then_some(unit)
    }

    /// The first unit of the pool that `unit`, which is not free, belongs to.
    #[inline]
    pub(crate) fn pool_unit(self, unit: usize) -> usize {
        let pair = unit & !(PAIR_UNITS - 1);
        match self.pool(pair).class() {
            Some(class) if Kind::of(class) == Kind::Pair => pair,
            _ => unit,
        }
    }

    /// The record of the pool that begins at `unit`.
    #[inline]
    pub(crate) fn pool(self, unit: usize) -> PoolPtr {
        let offset = core::mem::offset_of!(Arena, pools) + unit % ARENA_UNITS * size_of::<Pool>();
        // SAFETY: `init` 1; an index below 64 stays in the array, and the array in the header.
        let record = unsafe { self.0.byte_add(offset) }.cast::<Pool>();
        // SAFETY: `init` 1 promises both points for the header.
        unsafe { PoolPtr::new(record) }
    }

    /// Takes the units of a pool of `kind`; returns the first, and which of them are resident.
    ///
    /// Resident memory first, then what breaks no free pair, then lower addresses. The arena has a place for such a pool.
    pub(crate) fn take_pool(mut self, kind: Kind) -> (usize, u64) {
        let arena = self.get_mut();
        let places = kind.starts(arena.free);
        let pairs = Kind::Pair.starts(arena.free);
        let broken = places & !(pairs * Kind::Pair.mask(0));
        let choices = [broken & arena.resident, kind.starts(arena.resident), broken, places];
        let choice = choices.into_iter().find(|choice| *choice != 0).unwrap_or_default();
        let unit = choice.trailing_zeros() as usize;
        let taken = kind.mask(unit);
        let resident = arena.resident & taken;
        arena.free &= !taken;
        arena.resident &= !taken;
        (unit, resident)
    }

    /// Gives the units of the pool of `kind` at `unit`, closed by now, back.
    pub(crate) fn give_pool(mut self, unit: usize, kind: Kind) {
        let arena = self.get_mut();
        arena.free |= kind.mask(unit);
        arena.resident |= kind.mask(unit);
    }

    /// Free units without memory.
    pub(crate) fn absent_mask(self) -> u64 {
        self.get().free & !self.get().resident
    }

    /// Notes that the free units of `mask` are resident now.
    pub(crate) fn set_resident(mut self, mask: u64) {
        let arena = self.get_mut();
        debug_assert_eq!(mask & !arena.free, 0, "arena invariant 2");
        arena.resident |= mask;
    }

    /// Notes that the memory of the free units of `mask` went back to the system.
    pub(crate) fn set_purged(mut self, mask: u64) {
        self.get_mut().resident &= !mask;
    }

    /// The neighbours in list `list`.
    pub(crate) fn links(self, list: usize) -> Links {
        self.get().links[list]
    }

    pub(crate) fn set_next(mut self, list: usize, next: Option<Self>) {
        self.get_mut().links[list].next = next;
    }

    pub(crate) fn set_prev(mut self, list: usize, prev: Option<Self>) {
        self.get_mut().links[list].prev = prev;
    }

    /// Units at which the pools in use begin.
    pub(crate) fn open_units(self) -> impl Iterator<Item = usize> {
        let mut unit = 0;
        core::iter::from_fn(move || {
            let open = self.all_units() & !self.get().free & u64::MAX.checked_shl(unit)?;
            let found = open.trailing_zeros();
            let class = (open != 0).then(|| self.pool(found as usize).class())??;
            unit = found + u32::from(class.geometry().units);
            Some(found as usize)
        })
    }
}
