//! Owns the address test: is this address a block of this allocator, and of which class?
//!
//! The hot path finds an arena of the source's span by one compare, the cold ones by one more byte: a table of class bytes,
//! one a unit. Arenas elsewhere are entered in a hash table by arena number, which nobody asks while it is empty.

use core::ptr::NonNull;

use malloc_api::Malloc;

use crate::arena::ArenaPtr;
use crate::config::{ARENA_BYTES, ARENA_SHIFT, ARENA_UNITS, PAGE_BYTES, POOL_SHIFT};
use crate::header::header_address;
use crate::pool::PoolPtr;
use crate::size_class::SizeClass;
use crate::slots::FixedMap;
use crate::source::ArenaSource;

/// Class bytes by address.
///
/// The hot paths read the first two fields; all zero, as before the first arena, they say "not ours".
#[repr(C)]
pub(crate) struct AddressMap {
    /// Start of the source's span.
    base: *mut u8,
    /// Invariant 2: bytes from there to the end of the last arena of this allocator in the span; 0 if there is no arena.
    bytes: usize,
    /// Invariant 1: byte u is the class of the open pool that unit u belongs to, else 0.
    classes: *mut u8,
    /// Units that `classes` has room for; invariant 3: all of `bytes` at least.
    table_units: usize,
    /// Length of the span.
    span_bytes: usize,
    foreign: ForeignArenas,
}

/// Units that the first table has room for: 1 GiB. Each later table is four times as long as the one before.
const TABLE_UNITS_MIN: usize = 64 << 10;

impl AddressMap {
    pub(crate) const fn new() -> Self {
        Self {
            base: core::ptr::null_mut(),
            bytes: 0,
            classes: core::ptr::null_mut(),
            table_units: 0,
            span_bytes: 0,
            foreign: ForeignArenas::new(),
        }
    }

    /// Begins to cover the span of `source`, if it has one; arenas elsewhere are found too.
    pub(crate) fn cover(&mut self, source: &impl ArenaSource) {
        if let Some(span) = source.span() {
            self.base = span.base.as_ptr();
            self.span_bytes = span.bytes;
            if !self.grow_table(TABLE_UNITS_MIN, source) {
                *self = Self::new();
            }
        }
    }

    /// Makes the table long enough for `units`; `false` if there is no memory, and then nothing has changed.
    fn grow_table(&mut self, units: usize, source: &impl ArenaSource) -> bool {
        let mut room = self.table_units.max(TABLE_UNITS_MIN);
        while room < units {
            room *= 4;
        }
        let room = room.min(self.span_bytes >> POOL_SHIFT);
        let Some(table) = source.alloc_table(room) else { return false };
        // Beyond the last arena are zeros in both tables, of which no page is touched.
        let used = self.bytes >> POOL_SHIFT;
        // SAFETY: `ArenaSource` 4: the new table is longer and overlaps nothing; the old one has this length (invariant 3).
        unsafe { table.as_ptr().copy_from_nonoverlapping(self.classes, used) };
        self.free_table(source);
        (self.classes, self.table_units) = (table.as_ptr(), room);
        true
    }

    /// Gives the table its full length, so that it stays where it is from now on; `None` if there is no span, or no memory.
    pub(crate) fn fix_table(&mut self, source: &impl ArenaSource) -> Option<FixedMap> {
        let units = self.span_bytes >> POOL_SHIFT;
        if units == 0 || units > self.table_units && !self.grow_table(units, source) {
            return None;
        }
        let (base, bytes) = (self.base.addr(), self.span_bytes);
        Some(FixedMap { base, bytes, classes: self.classes })
    }

    fn free_table(&mut self, source: &impl ArenaSource) {
        if let Some(table) = NonNull::new(self.classes) {
            // SAFETY: 1: `grow_table` got it from this source with this size, and this value forgets it.
            unsafe { source.free_table(table, self.table_units) };
        }
        self.classes = core::ptr::null_mut();
    }

    /// Start of the span, and its bytes as far as it has arenas.
    #[inline]
    pub(crate) fn used_span(&self) -> (usize, usize) {
        (self.base.addr(), self.bytes)
    }

    /// The class byte of a block at `address`, if an arena of the span holds it; 0 for every other address.
    #[inline(always)]
    pub(crate) fn class_byte_in_span(&self, address: usize) -> u8 {
        let offset = address.wrapping_sub(self.base.addr());
        if offset >= self.bytes {
            return 0;
        }
        // SAFETY: invariant 3: `offset` is below `bytes`, so the unit is in the table.
        unsafe { *self.classes.wrapping_add(offset >> POOL_SHIFT) }
    }

    /// The class of a block at `address`, wherever its arena is; `None` if it is not in an open pool of ours.
    #[inline]
    pub(crate) fn class_of(&self, address: usize) -> Option<SizeClass> {
        match SizeClass::from_byte(self.class_byte_in_span(address)) {
            None => self.class_elsewhere(address),
            class => class,
        }
    }

    /// The same outside of the span.
    #[cold]
    #[inline(never)]
    fn class_elsewhere(&self, address: usize) -> Option<SizeClass> {
        let arena = self.foreign.find(address)?;
        let unit = arena.unit_of(address)?;
        if arena.free_mask() >> unit & 1 == 1 {
            return None;
        }
        arena.pool(arena.pool_unit(unit)).class()
    }

    /// The arena of a block.
    ///
    /// # Safety
    ///
    /// 1. `class_of(address)` is not `None`.
    #[inline]
    pub(crate) unsafe fn arena_of_block(&self, address: usize) -> ArenaPtr {
        let offset = address.wrapping_sub(self.base.addr());
        if offset < self.bytes {
            let header = header_address(address & !(ARENA_BYTES - 1));
            // SAFETY: in the arena of `address`, so in the span, which is not null.
            let header = unsafe { NonNull::new_unchecked(self.base.with_addr(header)) };
            // SAFETY: 1: the unit has a class, so its arena is live; arenas of the span are aligned to their size
            // (`ArenaSource` 3), so that is where `ArenaPtr::init` put the header.
            return unsafe { ArenaPtr::from_header(header) };
        }
        match self.foreign.find(address) {
            Some(arena) => arena,
            // SAFETY: 1: outside of the span only an arena in the table has a class.
            None => unsafe { core::hint::unreachable_unchecked() },
        }
    }

    /// The other arena in the huge page of `arena`, if it is one of ours with an open pool.
    pub(crate) fn neighbour(&self, arena: ArenaPtr) -> Option<ArenaPtr> {
        let start = arena.address().addr().get() ^ ARENA_BYTES;
        let mut units = (0..ARENA_UNITS).map(|unit| start + (unit << POOL_SHIFT));
        let open = units.find(|address| self.class_byte_in_span(*address) != 0)?;
        // SAFETY: 1: the unit has a class.
        Some(unsafe { self.arena_of_block(open) })
    }

    /// The pool of a block.
    ///
    /// # Safety
    ///
    /// 1. `class_of(address)` is not `None`.
    #[inline]
    pub(crate) unsafe fn pool_of_block(&self, address: usize) -> PoolPtr {
        if self.class_byte_in_span(address) != 0 {
            // SAFETY: 1: the unit has a class, so its arena is live.
            let pool = unsafe { PoolPtr::of_block(address) };
            // The record of a pair's second unit has none.
            if pool.class().is_some() {
                return pool;
            }
        }
        // SAFETY: 1.
        let arena = unsafe { self.arena_of_block(address) };
        // An open pool's unit is one of its arena's units.
        arena.pool(arena.pool_unit(arena.unit_of(address).unwrap_or_default()))
    }

    /// The record of the unit in which `address` lies; `None` outside of the span.
    ///
    /// # Safety
    ///
    /// 1. If `address` is in the span, it is in an arena that is mapped.
    #[inline(always)]
    pub(crate) unsafe fn record_in_span(&self, address: usize) -> Option<PoolPtr> {
        if address.wrapping_sub(self.base.addr()) >= self.bytes {
            return None;
        }
        // SAFETY: 1: by 1, and in the span.
        Some(unsafe { PoolPtr::of_block(address) })
    }

    /// Is `address` in an arena of the span, or between two of them?
    fn spans(&self, address: NonNull<u8>) -> bool {
        address.addr().get().wrapping_sub(self.base.addr()) < self.bytes
    }

    /// Enters a new arena. `false`: no memory for a table, and nothing has changed.
    pub(crate) fn insert(
        &mut self,
        arena: ArenaPtr,
        fallback: &impl Malloc,
        source: &impl ArenaSource,
    ) -> bool {
        let offset = arena.address().addr().get().wrapping_sub(self.base.addr());
        if offset >= self.span_bytes {
            return self.foreign.insert(arena, fallback);
        }
        let bytes = self.bytes.max(offset + ARENA_BYTES);
        let units = bytes >> POOL_SHIFT;
        if units > self.table_units && !self.grow_table(units, source) {
            return false;
        }
        self.bytes = bytes;
        true
    }

    /// Removes an arena without open pools; [`recede`](Self::recede) follows.
    pub(crate) fn remove(&mut self, arena: ArenaPtr) {
        if !self.spans(arena.address()) {
            self.foreign.remove(arena);
        }
    }

    /// Restores invariant 2 after arenas have gone: `arenas` are those that are left.
    pub(crate) fn recede(&mut self, arenas: impl Iterator<Item = ArenaPtr>) {
        let spanned = arenas.map(ArenaPtr::address).filter(|address| self.spans(*address));
        let last = spanned.map(|address| address.addr().get() - self.base.addr()).max();
        self.bytes = last.map_or(0, |offset| offset + ARENA_BYTES);
    }

    /// Notes the class of a pool of `units` units at `start`, or with 0 that it is closed.
    #[inline]
    pub(crate) fn set_class(&mut self, start: NonNull<u8>, units: usize, class: u8) {
        if !self.spans(start) {
            return;
        }
        let first = start.addr().get().wrapping_sub(self.base.addr()) >> POOL_SHIFT;
        for unit in first..first + units {
            // SAFETY: the pool is below `bytes`, so its units are in the table (invariant 3).
            unsafe { *self.classes.wrapping_add(unit) = class };
        }
    }

    /// Frees the tables. There are no arenas any more.
    pub(crate) fn clear(&mut self, fallback: &impl Malloc, source: &impl ArenaSource) {
        self.free_table(source);
        self.foreign.clear(fallback);
    }

    /// Tables in use and their bytes: of the span, then of arenas elsewhere.
    ///
    /// The span's table counts with its pages up to the last arena.
    pub(crate) fn footprint(&self) -> [(usize, usize); 2] {
        let bytes = (self.bytes >> POOL_SHIFT).next_multiple_of(PAGE_BYTES);
        let span = (usize::from(bytes > 0), bytes);
        let slots = self.foreign.capacity;
        [span, (usize::from(slots > 0), slots * size_of::<Slot>())]
    }
}

/// What lies in one piece of `ARENA_BYTES` at a multiple of that.
#[derive(Clone, Copy)]
struct Slot {
    /// Arena number plus 1; 0 for an unused slot.
    key: usize,
    /// The arena that begins here, and the one that ends here.
    begins: Option<ArenaPtr>,
    ends: Option<ArenaPtr>,
}

/// Arenas outside of the span: open addressing by arena number.
///
/// An arena at a multiple of its size has one number, any other one two.
struct ForeignArenas {
    slots: *mut Slot,
    /// Slots, a power of two, or 0.
    capacity: usize,
    /// Invariant 1: slots with a key; at most half of `capacity`, so that every search ends.
    keys: usize,
    /// Arenas entered; at 0 no search begins.
    arenas: usize,
}

impl ForeignArenas {
    const fn new() -> Self {
        Self { slots: core::ptr::null_mut(), capacity: 0, keys: 0, arenas: 0 }
    }

    #[expect(
        clippy::mut_from_ref,
        reason = "the table is behind a raw pointer that this value owns"
    )]
    fn slot(&self, index: usize) -> &mut Slot {
        // SAFETY: `index` is masked by the callers to `capacity`, which `slots` points to, zeroed (valid) or written;
        // the borrow ends within the caller's statement.
        unsafe { &mut *self.slots.wrapping_add(index) }
    }

    /// The index of the slot of `number`, or of the unused one where it would go.
    fn probe(&self, number: usize) -> usize {
        let mask = self.capacity - 1;
        let mut index = number.wrapping_mul(0x9E37_79B9).wrapping_shr(7) & mask;
        loop {
            let key = self.slot(index).key;
            if key == 0 || key == number + 1 {
                return index;
            }
            index = (index + 1) & mask;
        }
    }

    fn find(&self, address: usize) -> Option<ArenaPtr> {
        if self.arenas == 0 {
            return None;
        }
        let slot = *self.slot(self.probe(address >> ARENA_SHIFT));
        let holds =
            |arena: &ArenaPtr| address.wrapping_sub(arena.address().addr().get()) < ARENA_BYTES;
        slot.begins.filter(holds).or(slot.ends.filter(holds))
    }

    fn insert(&mut self, arena: ArenaPtr, fallback: &impl Malloc) -> bool {
        if (self.keys + 2) * 2 > self.capacity && !self.grow(fallback) {
            return false;
        }
        self.enter(arena);
        self.arenas += 1;
        true
    }

    fn enter(&mut self, arena: ArenaPtr) {
        let [first, last] = Self::numbers(arena);
        let index = self.probe(first);
        let slot = self.slot(index);
        let mut new_keys = usize::from(slot.key == 0);
        slot.key = first + 1;
        slot.begins = Some(arena);
        if last != first {
            let index = self.probe(last);
            let slot = self.slot(index);
            new_keys += usize::from(slot.key == 0);
            slot.key = last + 1;
            slot.ends = Some(arena);
        }
        self.keys += new_keys;
    }

    fn remove(&mut self, arena: ArenaPtr) {
        let [first, last] = Self::numbers(arena);
        // The keys stay, so that no search breaks; `grow` drops those without an arena.
        self.slot(self.probe(first)).begins = None;
        if last != first {
            self.slot(self.probe(last)).ends = None;
        }
        self.arenas -= 1;
    }

    fn numbers(arena: ArenaPtr) -> [usize; 2] {
        let first = arena.address().addr().get();
        [first >> ARENA_SHIFT, (first + (ARENA_BYTES - 1)) >> ARENA_SHIFT]
    }

    fn grow(&mut self, fallback: &impl Malloc) -> bool {
        let old = Self { ..*self };
        let capacity = (self.arenas * 8).next_power_of_two().max(16);
        let Some(slots) = fallback.calloc(capacity, size_of::<Slot>()) else {
            return false;
        };
        self.slots = slots.as_ptr().cast();
        self.capacity = capacity;
        self.keys = 0;
        for index in 0..old.capacity {
            if let Some(arena) = old.slot(index).begins {
                self.enter(arena);
            }
        }
        // SAFETY: `calloc` of the same allocator gave it, or it is null; nothing points to it any more.
        unsafe { fallback.free(NonNull::new(old.slots.cast())) };
        true
    }

    fn clear(&mut self, fallback: &impl Malloc) {
        // SAFETY: `calloc` of the same allocator gave it, or it is null; `self` forgets it next.
        unsafe { fallback.free(NonNull::new(self.slots.cast())) };
        *self = Self::new();
    }
}
