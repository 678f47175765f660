//! Owns one arena: its header, the records of its pools, and which pools are free. Leaves the order of arenas to
//! `arenas.rs`.
//!
//! ```text
//!  address (any alignment)
//!  v
//!  +--------+----------------+---------+---------+-- --+---------+--------+
//!  | slack  | unit 0         | unit 1  | unit 2  | ... | unit 63 | slack  |
//!  |        | Arena, records | pool    | pool    |     | pool    |        |
//!  +--------+----------------+---------+---------+-- --+---------+--------+
//!           ^ first unit, aligned to POOL_BYTES; slack and the last unit: one or the other
//! ```
//!
//! A medium arena has pools of four units; they begin at unit 4.
//!
//! Unit 0 has four pages. One holds the header with the pools' records, which every call reads, two hold the idle maps,
//! and one stays untouched. Which one is which turns with the arena's number: arenas begin at multiples of 1 MiB, so at
//! the same place in each the records of a whole heap would share a few sets of the cache.

use core::ptr::NonNull;

use crate::config::{
    ARENA_BYTES, ARENA_SHIFT, ARENA_UNITS, MEDIUM_POOL_UNITS, PAGE_BYTES, POOL_BYTES, POOL_SHIFT,
};
use crate::pool::{Pool, PoolPtr, RECORD_SHIFT};
use crate::size_class::SizeClass;

/// What size of pool an arena is divided into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// Pools of one unit.
    Small = 0,
    /// Pools of `MEDIUM_POOL_UNITS`.
    Medium = 1,
}

impl Kind {
    pub(crate) const ALL: [Self; 2] = [Self::Small, Self::Medium];

    pub(crate) const fn of(class: SizeClass) -> Self {
        if class.geometry().units as usize == 1 { Self::Small } else { Self::Medium }
    }

    pub(crate) const fn units(self) -> usize {
        match self {
            Self::Small => 1,
            Self::Medium => MEDIUM_POOL_UNITS,
        }
    }
}

/// An arena's header: the records of its pools, then what concerns the arena.
#[repr(C)]
pub(crate) struct Arena {
    /// Invariant 3: at the start of a page of unit 0.
    pools: [Pool; ARENA_UNITS],
    /// Where the source put the arena.
    address: NonNull<u8>,
    /// Address of unit 0, `address` rounded up to `POOL_BYTES`.
    first_unit: NonNull<u8>,
    /// Neighbours in a list of `arenas.rs`.
    next: Option<ArenaPtr>,
    prev: Option<ArenaPtr>,
    /// Neighbours in the list of all arenas.
    all_next: Option<ArenaPtr>,
    all_prev: Option<ArenaPtr>,
    /// Invariant 1: bit u is set if unit u begins a free pool.
    free: u64,
    /// Invariant 2: a subset of `free`: pools whose memory is resident, because it was used or populated.
    resident: u64,
    kind: Kind,
    /// Did the source make this arena (else a record that was set at run time)?
    from_source: bool,
    /// Units that fit, 64 or 63.
    units: u8,
}

const _: () = assert!(size_of::<Arena>() <= PAGE_BYTES);

/// Pages of an arena's first unit.
const WINDOWS: usize = POOL_BYTES / PAGE_BYTES;
const _: () = assert!(WINDOWS.is_power_of_two());

/// Address of the header in an arena whose first unit is at `first_unit`.
#[inline(always)]
pub(crate) const fn header_address(first_unit: usize) -> usize {
    first_unit + (first_unit >> ARENA_SHIFT) % WINDOWS * PAGE_BYTES
}

/// Address of the record of the unit in which `address` lies, in an arena that begins at a multiple of its size.
#[inline(always)]
pub(crate) const fn record_address(address: usize) -> usize {
    header_address(address & !(ARENA_BYTES - 1))
        + (((address % ARENA_BYTES) >> POOL_SHIFT) << RECORD_SHIFT)
}

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
        let slack = address.addr().get().wrapping_neg() % POOL_BYTES;
        // SAFETY: 1; slack is less than a pool, which an arena is longer than.
        let first_unit = unsafe { address.add(slack) };
        if !zeroed {
            // SAFETY: 1; unit 0, with the header and the idle maps, lies in the arena.
            unsafe { first_unit.write_bytes(0, POOL_BYTES) };
        }
        let window = header_address(first_unit.addr().get()) - first_unit.addr().get();
        // SAFETY: 1; a page of unit 0, into which the header fits (asserted above).
        let header = unsafe { first_unit.add(window) }.cast::<Arena>();
        let arena = header.as_ptr();
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
        this.set_kind(Kind::Small);
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

    pub(crate) fn kind(self) -> Kind {
        self.get().kind
    }

    pub(crate) fn is_from_source(self) -> bool {
        self.get().from_source
    }

    /// Divides a wholly free arena into pools of `kind`.
    pub(crate) fn set_kind(mut self, kind: Kind) {
        let arena = self.get_mut();
        // Every unit of a resident pool is resident.
        let mut before = 0;
        for shift in 0..arena.kind.units() {
            before |= arena.resident << shift;
        }
        arena.kind = kind;
        arena.free = 0;
        let mut unit = kind.units();
        while unit + kind.units() <= usize::from(arena.units) {
            arena.free |= 1 << unit;
            unit += kind.units();
        }
        // Units that were resident stay so, as parts of pools too: a pool is resident if all of it is.
        let mut resident = before;
        for shift in 1..kind.units() {
            resident &= before >> shift;
        }
        arena.resident = resident & arena.free;
    }

    /// Number of pools, free or not.
    pub(crate) fn pools(self) -> usize {
        let units = usize::from(self.get().units);
        units / self.kind().units() - 1
    }

    pub(crate) fn free_pools(self) -> usize {
        self.get().free.count_ones() as usize
    }

    /// First units of the free pools.
    pub(crate) fn free_mask(self) -> u64 {
        self.get().free
    }

    pub(crate) fn resident_mask(self) -> u64 {
        self.get().resident
    }

    /// Bytes that no pool can use: slack at both ends, and units too few for a pool.
    pub(crate) fn alignment_bytes(self) -> usize {
        ARENA_BYTES - POOL_BYTES - self.pools() * self.kind().units() * POOL_BYTES
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

    /// The first unit of the pool that `unit` belongs to.
    #[inline]
    pub(crate) fn pool_unit(self, unit: usize) -> usize {
        unit & !(self.kind().units() - 1)
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

    /// Takes a free pool, resident memory first, lower addresses first; returns its unit and whether it is resident.
    ///
    /// The arena has a free pool.
    pub(crate) fn take_pool(mut self) -> (usize, bool) {
        let arena = self.get_mut();
        let resident = arena.resident != 0;
        let choice = if resident { arena.resident } else { arena.free };
        let unit = choice.trailing_zeros() as usize;
        arena.free &= !(1 << unit);
        arena.resident &= !(1 << unit);
        (unit, resident)
    }

    /// Gives the pool at `unit`, closed by now, back.
    pub(crate) fn give_pool(mut self, unit: usize) {
        let arena = self.get_mut();
        arena.free |= 1 << unit;
        arena.resident |= 1 << unit;
    }

    /// Number of free pools without memory directly after the one at `unit`, at most `limit`.
    pub(crate) fn virgin_run(self, unit: usize, limit: usize) -> usize {
        let step = self.kind().units();
        let virgin = self.get().free & !self.get().resident;
        let mut run = 0;
        let mut next = unit + step;
        while run < limit && next < ARENA_UNITS && virgin >> next & 1 == 1 {
            run += 1;
            next += step;
        }
        run
    }

    /// Notes that `count` free pools after the one at `unit` are resident now.
    pub(crate) fn set_resident_after(mut self, unit: usize, count: usize) {
        let step = self.kind().units();
        let arena = self.get_mut();
        for i in 1..=count {
            arena.resident |= 1 << (unit + i * step);
        }
        debug_assert_eq!(arena.resident & !arena.free, 0, "arena invariant 2");
    }

    /// Notes that all of a wholly free arena is resident.
    pub(crate) fn set_all_resident(mut self) {
        let arena = self.get_mut();
        arena.resident = arena.free;
    }

    /// Notes that the memory of the free pools of `mask` went back to the system.
    pub(crate) fn set_purged(mut self, mask: u64) {
        self.get_mut().resident &= !mask;
    }

    pub(crate) fn next(self) -> Option<Self> {
        self.get().next
    }

    pub(crate) fn prev(self) -> Option<Self> {
        self.get().prev
    }

    pub(crate) fn set_next(mut self, next: Option<Self>) {
        self.get_mut().next = next;
    }

    pub(crate) fn set_prev(mut self, prev: Option<Self>) {
        self.get_mut().prev = prev;
    }

    pub(crate) fn all_next(self) -> Option<Self> {
        self.get().all_next
    }

    pub(crate) fn all_prev(self) -> Option<Self> {
        self.get().all_prev
    }

    pub(crate) fn set_all_next(mut self, next: Option<Self>) {
        self.get_mut().all_next = next;
    }

    pub(crate) fn set_all_prev(mut self, prev: Option<Self>) {
        self.get_mut().all_prev = prev;
    }

    /// Units at which the pools in use begin.
    pub(crate) fn open_units(self) -> impl Iterator<Item = usize> {
        let (step, units) = (self.kind().units(), usize::from(self.get().units));
        (1..ARENA_UNITS / step)
            .map(move |index| index * step)
            .take_while(move |unit| unit + step <= units)
            .filter(move |unit| self.get().free >> unit & 1 == 0)
    }
}
