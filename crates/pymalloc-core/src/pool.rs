//! Owns a pool: its record and the list of its freed blocks. Leaves the map of those that it has not handed out yet to `idle_map.rs`,
//! where the record lies to `header.rs`, the arena around it to `arena.rs`, and to `used_pools.rs` the lists of pools.
//!
//! ```text
//!  record, 32 bytes, in the arena's header           idle map, 16 bytes, in the header too
//!  +-----+------+-------+------+------+------+------+     +----------------------------------+
//!  | key | live | class | word | list | next | prev |     | a bit for a block, or for the    |
//!  +-----+------+-------+------+--|---+------+------+     | neighbours in 128 bytes: not     |
//!                                 |                       | handed out since the pool opened |
//!                                 v                       +----------------------------------+
//!                     freed block -> freed block -> null    (the link is the block's first word)
//! ```
//!
//! The list is last in, first out: the block that was freed last is handed out first, while it is in the cache. Idle
//! blocks are not touched: fresh memory stays untouched until a program needs it, and so does a page that went back to the
//! system.

use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};

use pymem_sync::Filling;

use crate::checks::annotate;
use crate::checks::hardened::{self, Misuse};
use crate::config::{ARENA_UNITS, GRAIN_BYTES, PAGE_BYTES, POOL_BYTES, POOL_SHIFT};
use crate::header::{IDLE_OFFSET, RECORD_SHIFT, beside_header, record_address};
use crate::idle_map::{GROUPS_MAX, IDLE_WORDS, IdleMap};
use crate::lane::{LANE_BITS, Lane};
use crate::links::{read_link, write_link};
use crate::size_class::{Geometry, SizeClass};

/// Most blocks of a pool.
const BLOCKS_MAX: usize = POOL_BYTES / GRAIN_BYTES;

/// The record of a pool. Zero bytes are a valid record: a pool without a class.
#[repr(C)]
pub(crate) struct Pool {
    /// Invariant 1: the allocator's key while the pool is in the list of used pools of its class, else 0. So one compare
    /// tells the hot path that it may push.
    pub(crate) key: AtomicU32,
    /// Invariant 2: blocks that are handed out, and one more in the first pool of its class: that pool is kept, so the
    /// count reaches 0 in a pool that must be closed.
    pub(crate) live: u16,
    /// The class byte, 0 for a pool that belongs to no class.
    class: u8,
    /// Invariant 3: no bit of the idle map is set in the words before this one, which the low half names. The high half is the lane.
    first_word: u8,
    /// Invariant 4: freed blocks of this pool, linked through their first words; neither live nor idle.
    list: *mut u8,
    /// Invariant 5: neighbours in the list of used pools of the class; both `None` outside a list.
    pub(crate) next: Option<PoolPtr>,
    pub(crate) prev: Option<PoolPtr>,
}

/// Bits of a lane's number, and of a word's, in a record.
const LANE_SHIFT: u32 = u8::BITS - LANE_BITS;
const _: () = assert!(IDLE_WORDS <= 1 << LANE_SHIFT);
const _: () = assert!(size_of::<Pool>() == 1 << RECORD_SHIFT, "the hot path shifts by it");

impl Pool {
    /// A record that is no arena's, of a pool without a class.
    pub(crate) const fn none() -> Self {
        Self {
            key: AtomicU32::new(0),
            live: 0,
            class: 0,
            first_word: 0,
            list: core::ptr::null_mut(),
            next: None,
            prev: None,
        }
    }
}

/// A pool record of a live arena.
///
/// Invariant: made by [`PoolPtr::new`] alone, whose callers promise what the methods rely on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub(crate) struct PoolPtr(NonNull<Pool>);

impl PoolPtr {
    /// # Safety
    ///
    /// 1. `record` is a `Pool` in its place in the header of an arena that stays mapped while this handle, or a copy, is
    ///    used, and may reach all of that arena.
    /// 2. Nobody else reads or writes the record meanwhile but through handles of the same allocator, on which
    ///    the caller has exclusive access.
    #[inline(always)]
    pub(crate) const unsafe fn new(record: NonNull<Pool>) -> Self {
        Self(record)
    }

    /// The record of the unit in which `address` lies.
    ///
    /// By the address alone: with the span's pointer the compiler would add to it what it had taken off before.
    ///
    /// # Safety
    ///
    /// 1. `address` is in an arena of the span that is mapped.
    #[inline(always)]
    pub(crate) unsafe fn of_block(address: usize) -> Self {
        let record = core::ptr::with_exposed_provenance_mut(record_address(address));
        // SAFETY: in the arena of `address` (1), so not null.
        let record = unsafe { NonNull::new_unchecked(record) };
        // SAFETY: 1 for the mapping; the place is that of a record in an arena aligned to its size (`ArenaSource` 3), whose
        // address was exposed (`ArenaPtr::init`); records of another allocator's arenas are only compared with a key, which
        // they never have.
        unsafe { Self::new(record) }
    }

    #[inline(always)]
    pub(crate) fn get(&self) -> &Pool {
        // SAFETY: `new` 1 and 2: mapped, and not written while `self` is borrowed by this single caller.
        unsafe { self.0.as_ref() }
    }

    #[inline(always)]
    pub(crate) fn get_mut(&mut self) -> &mut Pool {
        // SAFETY: `new` 1 and 2; each borrow ends inside the method that took it.
        unsafe { self.0.as_mut() }
    }

    /// Takes the block that was freed last; `None` if no freed block is left.
    #[inline(always)]
    pub(crate) fn pop(mut self) -> Option<NonNull<u8>> {
        let block = NonNull::new(self.get().list)?;
        let pool = self.get_mut();
        // SAFETY: 1: invariant 4: `block` is on the list of freed blocks.
        pool.list = unsafe { read_link(block) };
        pool.live += 1;
        Some(block)
    }

    /// Moves free blocks into `filling` as far as there is room, those that were freed last first and then idle ones; they are live
    /// then.
    #[inline]
    pub(crate) fn pop_many(mut self, class: SizeClass, filling: &mut Filling<'_>) {
        let mut list = self.get().list;
        let mut count = filling.extend(core::iter::from_fn(|| {
            let block = NonNull::new(list)?;
            // SAFETY: 1: invariant 4: `block` is on the list of freed blocks.
            list = unsafe { read_link(block) };
            Some(block)
        }));
        while filling.left() > 0 {
            let groups = filling.left().div_ceil(class.geometry().group.into());
            let run = self.take_idle(class, groups as u32);
            if run.is_empty() {
                break;
            }
            for offset in run.step_by(class.size()) {
                // SAFETY: `open` and `make_idle` set bits of groups of this pool alone.
                let block = unsafe { self.first_block(class).add(offset) };
                if filling.left() > 0 {
                    filling.put(block);
                    count += 1;
                } else {
                    // The last group has more than there is room for.
                    // SAFETY: 1: an idle block is the pool's alone.
                    unsafe { write_link(block, list) };
                    list = block.as_ptr();
                }
            }
        }
        self.get_mut().list = list;
        self.get_mut().live += count as u16;
    }

    /// Sets the key.
    pub(crate) fn set_key(self, key: u32) {
        self.get().key.store(key, Ordering::Relaxed);
    }

    /// Is this the record of a used pool of the allocator with this key?
    #[inline(always)]
    pub(crate) fn has_key(self, key: u32) -> bool {
        // Relaxed: of a pool that somebody else may use, the key is all that is read; it may be any then but the one that is asked for.
        // SAFETY: `new` 1: mapped.
        unsafe { (*self.0.as_ptr()).key.load(Ordering::Relaxed) == key }
    }

    /// Puts a live block on the list; returns whether it was the last one, and the pool not the first of its class.
    ///
    /// # Safety
    ///
    /// 1. `block` is a live block of this pool, which is not used afterwards.
    #[inline(always)]
    pub(crate) unsafe fn push(mut self, block: NonNull<u8>) -> bool {
        let pool = self.get_mut();
        // SAFETY: 1: the block is the pool's from now on.
        unsafe { write_link(block, pool.list) };
        pool.list = block.as_ptr();
        pool.live -= 1;
        pool.live == 0
    }

    /// Puts live blocks on the list, the last of them first: those with which `blocks` begins, as long as they are in the unit of the
    /// first. Returns as [`push`](Self::push), and the first block that is elsewhere.
    ///
    /// # Safety
    ///
    /// 1. `first` is a live block of this pool, and what `blocks` has of the same unit too; they are not used afterwards.
    #[inline]
    pub(crate) unsafe fn push_run(
        mut self,
        first: NonNull<u8>,
        blocks: &mut impl Iterator<Item = NonNull<u8>>,
    ) -> (bool, Option<NonNull<u8>>) {
        let pool = self.get_mut();
        let (mut list, mut count, mut block) = (pool.list, 0, first);
        let next = loop {
            // SAFETY: 1: the block is the pool's from now on.
            unsafe { write_link(block, list) };
            list = block.as_ptr();
            count += 1;
            let Some(next) = blocks.next() else { break None };
            if (next.addr().get() ^ first.addr().get()) >> POOL_SHIFT != 0 {
                break Some(next);
            }
            block = next;
        };
        pool.list = list;
        pool.live -= count;
        (pool.live == 0, next)
    }

    pub(crate) fn class(self) -> Option<SizeClass> {
        SizeClass::from_byte(self.get().class)
    }

    /// Blocks handed out.
    pub(crate) fn live_blocks(self) -> usize {
        let is_first = !self.has_key(0) && self.get().prev.is_none();
        usize::from(self.get().live) - usize::from(is_first)
    }

    /// The arena's first unit, in which the record lies.
    fn first_unit(self) -> NonNull<u8> {
        let into = self.0.addr().get() % POOL_BYTES;
        // SAFETY: `new` 1: the header is in the arena's first unit, which is aligned to `POOL_BYTES`.
        unsafe { self.0.cast::<u8>().sub(into) }
    }

    /// The unit with which the pool begins.
    pub(crate) fn unit(self) -> usize {
        ((self.0.addr().get() % PAGE_BYTES) >> RECORD_SHIFT) % ARENA_UNITS
    }

    /// Address of the first unit.
    pub(crate) fn base(self) -> NonNull<u8> {
        // SAFETY: `new` 1: the pool is in the same arena.
        unsafe { self.first_unit().add(self.unit() << POOL_SHIFT) }
    }

    /// Address of the first block of a pool of `class`.
    fn first_block(self, class: SizeClass) -> NonNull<u8> {
        // SAFETY: `new` 1: in the pool.
        unsafe { self.base().add(class.geometry().start.into()) }
    }

    #[expect(clippy::mut_from_ref, reason = "the map is the record's, as if it were a field")]
    fn idle(&self) -> &mut IdleMap {
        let into = self.0.addr().get() % PAGE_BYTES;
        // SAFETY: `new` 1: the record is this far into the header.
        let header = unsafe { self.0.cast::<u8>().sub(into) };
        // SAFETY: `new` 1: the maps follow the records.
        let map = unsafe { header.add(IDLE_OFFSET + self.unit() * size_of::<IdleMap>()) };
        // SAFETY: `new` 1 and 2, as for the record; each borrow ends inside the method that took it.
        unsafe { &mut *map.cast().as_ptr() }
    }

    /// The lane whose threads take blocks of the pool.
    pub(crate) fn lane(self) -> Lane {
        Lane::of(self.get().first_word >> LANE_SHIFT)
    }

    /// Gives the pool, which is in no list, to another lane.
    pub(crate) fn set_lane(mut self, lane: Lane) {
        let word = self.first_word();
        self.get_mut().first_word = lane.number() << LANE_SHIFT | word as u8;
    }

    /// The first word of the idle map that may have a bit.
    fn first_word(self) -> usize {
        usize::from(self.get().first_word % (1 << LANE_SHIFT))
    }

    fn set_first_word(mut self, word: usize) {
        let lane = self.lane();
        self.get_mut().first_word = lane.number() << LANE_SHIFT | word as u8;
    }

    /// Tells a memory checker, if the build has one, that nobody may touch the pool but through blocks.
    pub(crate) fn annotate_opened(self, class: SizeClass) {
        let from = self.unit() * POOL_BYTES;
        for part in beside_header(self.first_unit().addr().get(), from, from + class.pool_bytes()) {
            // SAFETY: `new` 1: in the pool.
            annotate::pool_opened(unsafe { self.first_unit().add(part.start) }, part.len());
        }
    }

    /// Starts the pool's life in `class`: all blocks idle, in no list.
    pub(crate) fn open(mut self, class: SizeClass, lane: Lane) {
        let pool = self.get_mut();
        pool.live = 0;
        pool.class = class.byte();
        pool.first_word = lane.number() << LANE_SHIFT;
        pool.list = core::ptr::null_mut();
        pool.next = None;
        pool.prev = None;
        let groups = class.blocks_per_pool().div_ceil(class.geometry().group.into());
        self.idle().open(groups, self.groups_of_header(class));
    }

    /// The groups of blocks in whose place the arena's header is: they are never idle, nor handed out.
    fn groups_of_header(self, class: SizeClass) -> Range<usize> {
        if self.unit() != 0 {
            return 0..0;
        }
        let header = self.0.addr().get() % POOL_BYTES / PAGE_BYTES * PAGE_BYTES;
        let Geometry { group, start, .. } = *class.geometry();
        let group_of = |offset: usize| {
            class.geometry().block_at(offset.saturating_sub(start.into())) / usize::from(group)
        };
        group_of(header)..group_of(header + PAGE_BYTES - 1) + 1
    }

    /// Blocks that the pool can hand out.
    pub(crate) fn capacity(self, class: SizeClass) -> usize {
        let group = usize::from(class.geometry().group);
        let lost = self.groups_of_header(class);
        let blocks = class.blocks_per_pool();
        blocks - ((lost.end * group).min(blocks) - (lost.start * group).min(blocks))
    }

    /// Bytes of the pool: the arena's header, if it is in the same unit, is not counted.
    pub(crate) fn bytes(self, class: SizeClass) -> usize {
        class.pool_bytes() - if self.unit() == 0 { PAGE_BYTES } else { 0 }
    }

    /// Ends the pool's life in its class. None of its blocks is live.
    pub(crate) fn close(mut self) {
        self.idle().clear();
        let pool = self.get_mut();
        pool.class = 0;
        pool.key.store(0, Ordering::Relaxed);
    }

    /// Moves some idle blocks, those of the lowest addresses, to the empty list; `false` if there are none.
    #[inline]
    pub(crate) fn extend(mut self, class: SizeClass) -> bool {
        let (size, base) = (class.size(), self.first_block(class));
        let run = self.take_idle(class, class.geometry().extension.into());
        if run.is_empty() {
            return false;
        }
        // SAFETY: `open` and `make_idle` set bits of groups of this pool alone.
        let first = unsafe { base.add(run.start) };
        // SAFETY: as above, in whole blocks.
        let last = unsafe { base.add(run.end - size) };
        let mut block = first;
        while block != last {
            // SAFETY: as above: the run has whole blocks, of which this is not the last.
            let next = unsafe { block.add(size) };
            // SAFETY: 1: an idle block is the pool's alone.
            unsafe { write_link(block, next.as_ptr()) };
            block = next;
        }
        // SAFETY: 1: an idle block is the pool's alone.
        unsafe { write_link(block, core::ptr::null_mut()) };
        self.get_mut().list = first.as_ptr();
        true
    }

    /// Takes neighbouring idle blocks, those of the lowest addresses, in up to `groups` groups. Returns where the first begins and the
    /// last ends, as offsets from the first block; an empty range if no block is idle.
    #[inline]
    fn take_idle(self, class: SizeClass, groups: u32) -> Range<usize> {
        let idle = self.idle();
        let word = idle.first_word(self.first_word());
        self.set_first_word(word);
        let group = usize::from(class.geometry().group);
        let taken = idle.take(word, groups);
        let stride = group * class.size();
        let end = class.blocks_per_pool() * class.size();
        taken.start * stride..end.min(taken.end * stride)
    }

    /// Makes every group of freed blocks idle again, so that nothing is kept in them. Blocks beside live ones stay freed.
    pub(crate) fn make_idle(mut self) {
        let Some(class) = self.class() else { return };
        let (group, blocks) = (usize::from(class.geometry().group), class.blocks_per_pool());
        let base = self.first_block(class).addr().get();
        let group_of =
            |block: NonNull<u8>| class.geometry().block_at(block.addr().get() - base) / group;
        let mut freed = [0_u8; GROUPS_MAX];
        self.freed().for_each(|block| freed[group_of(block)] += 1);
        let is_whole =
            |index: usize| usize::from(freed[index]) == group.min(blocks - index * group);
        let mut list = core::ptr::null_mut();
        let mut next = NonNull::new(self.get().list);
        while let Some(block) = next {
            // SAFETY: 1: invariant 4.
            next = NonNull::new(unsafe { read_link(block) });
            let index = group_of(block);
            if is_whole(index) {
                self.idle().put(index);
            } else {
                // SAFETY: 1: invariant 4.
                unsafe { write_link(block, list) };
                list = block.as_ptr();
            }
        }
        self.get_mut().list = list;
        self.set_first_word(0);
    }

    /// Is the block of `class` at `index` idle?
    pub(crate) fn is_idle(self, class: SizeClass, index: usize) -> bool {
        self.idle().has(index / usize::from(class.geometry().group))
    }

    /// The freed blocks, last freed first.
    fn freed(self) -> impl Iterator<Item = NonNull<u8>> {
        // SAFETY: 1: invariant 4.
        core::iter::successors(NonNull::new(self.get().list), |block| unsafe {
            NonNull::new(read_link(*block))
        })
    }

    /// Aborts with a message unless `block`, of `class`, may be a live block of this pool.
    ///
    /// The answer is certain, with two exceptions: a block that has a new owner by now, and one whose seal was overwritten
    /// after it was freed.
    pub(crate) fn check_live(self, class: SizeClass, block: NonNull<u8>) {
        let first = self.first_block(class).addr().get();
        let Some(offset) = block.addr().get().checked_sub(first) else {
            hardened::fatal(Misuse::NotABlock, block);
        };
        let index = class.geometry().block_at(offset);
        let is_lost =
            self.groups_of_header(class).contains(&(index / usize::from(class.geometry().group)));
        if index * class.size() != offset || index >= class.blocks_per_pool() || is_lost {
            hardened::fatal(Misuse::NotABlock, block);
        }
        // A live block can hold its seal, so the list has the last word. A memory checker does not let us read the seal of a
        // block that is shorter than that.
        // SAFETY: 1: by the test above.
        let may_be_free = annotate::IS_ON || unsafe { hardened::is_sealed(block) };
        if self.is_idle(class, index) || may_be_free && self.freed().any(|freed| freed == block) {
            hardened::fatal(Misuse::DoubleFree, block);
        }
    }

    /// Asserts invariants 2 to 4.
    pub(crate) fn check(self) {
        let Some(class) = self.class() else { return };
        let idle = self.idle();
        let first = self.first_word();
        assert!(idle.first_word(0) >= first, "pool invariant 3");
        let (group, blocks) = (usize::from(class.geometry().group), class.blocks_per_pool());
        let groups = blocks.div_ceil(group);
        let lost = self.groups_of_header(class);
        for index in 0..GROUPS_MAX {
            let may_be_idle = index < groups && !lost.contains(&index);
            assert!(may_be_idle || !idle.has(index), "an idle block that the pool does not have");
        }
        let mut seen = [0_u64; BLOCKS_MAX / 64];
        for index in (0..blocks).filter(|index| self.is_idle(class, *index)) {
            seen[index / 64] |= 1 << (index % 64);
        }
        let base = self.first_block(class).addr().get();
        for block in self.freed() {
            let offset = block.addr().get().wrapping_sub(base);
            let index = class.geometry().block_at(offset);
            assert!(
                offset < class.pool_bytes() && index * class.size() == offset,
                "pool invariant 4: a block"
            );
            assert_eq!(
                seen[index / 64] >> (index % 64) & 1,
                0,
                "pool invariant 4: a block is free twice"
            );
            seen[index / 64] |= 1 << (index % 64);
        }
        let free: u32 = seen.iter().map(|word| word.count_ones()).sum();
        assert_eq!(
            free as usize + self.live_blocks(),
            self.capacity(class),
            "pool invariant 2: every block is live or free"
        );
    }
}
