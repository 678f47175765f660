//! Owns a pool's record: the list of its freed blocks, and which blocks it has not handed out yet. Leaves the lists of
//! pools to `used_pools.rs` and the record's place to `arena.rs`.
//!
//! ```text
//!  record, 32 bytes, in the arena's header           idle map, 128 bytes, in another page of the header
//!  +-----+------+-------+------+------+------+------+     +----------------------------------+
//!  | key | live | class | word | list | next | prev |     | a bit a block: not handed out    |
//!  +-----+------+-------+------+--|---+------+------+     | since the pool was opened        |
//!                                 v                       +----------------------------------+
//!                     freed block -> freed block -> null    (the link is the block's first word)
//! ```
//!
//! The list is last in, first out, so what was freed last is handed out first, while it is in the cache. Idle blocks
//! are not touched: fresh memory stays untouched until it is needed, and so does a page that went back to the system.

use core::ptr::NonNull;

use crate::checks::hardened::{read_link, write_link};
use crate::config::{ARENA_UNITS, GRAIN_BYTES, PAGE_BYTES, POOL_BYTES, POOL_SHIFT};
use crate::size_class::SizeClass;

/// Words of an idle map: a bit for each block of the smallest class.
pub(crate) const IDLE_WORDS: usize = POOL_BYTES / GRAIN_BYTES / 64;

/// Which blocks of a pool are idle.
pub(crate) type IdleMap = [u64; IDLE_WORDS];

/// Bytes of idle blocks that are moved to the list at a time: few enough to stay in the cache until they are used.
const EXTEND_BYTES: usize = 1024;

/// The record of a pool. Zero bytes are a valid record: a pool without a class.
#[repr(C)]
pub(crate) struct Pool {
    /// Invariant 1: the allocator's key while the pool has a class and is in its list of used pools, else 0. So one
    /// compare tells the hot path that it may push.
    key: u32,
    /// Invariant 2: blocks that are handed out, and one more in the first pool of its class: that pool is kept, so the count
    /// reaches 0 when a pool is to be closed.
    live: u16,
    /// The class byte, 0 for a pool that belongs to no class.
    class: u8,
    /// Invariant 3: no bit of the idle map is set in the words before this one.
    first_word: u8,
    /// Invariant 4: freed blocks of this pool, linked through their first words; neither live nor idle.
    list: *mut u8,
    /// Invariant 5: neighbours in the list of used pools of the class; both `None` outside a list.
    next: Option<PoolPtr>,
    prev: Option<PoolPtr>,
}

const _: () = assert!(IDLE_WORDS <= u8::MAX as usize);
const _: () = assert!(POOL_BYTES / GRAIN_BYTES <= u16::MAX as usize);
#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<Pool>() == 1 << RECORD_SHIFT, "the hot path shifts by it");

/// Binary logarithm of a record's bytes.
pub(crate) const RECORD_SHIFT: u32 = size_of::<Pool>().trailing_zeros();
const _: () = assert!(size_of::<Pool>().is_power_of_two());

/// Stands for "no pool": its list is empty for ever, so that every pop takes the cold path.
pub(crate) static NO_POOL: NoPool = NoPool(Pool {
    key: 0,
    live: 0,
    class: 0,
    first_word: 0,
    list: core::ptr::null_mut(),
    next: None,
    prev: None,
});

pub(crate) struct NoPool(Pool);

// SAFETY: nobody writes it: a pop writes only after it has found a block.
unsafe impl Sync for NoPool {}

impl NoPool {
    pub(crate) const fn as_ptr(&'static self) -> PoolPtr {
        let record = core::ptr::from_ref(&self.0).cast_mut();
        // SAFETY: a reference is not null.
        PoolPtr(unsafe { NonNull::new_unchecked(record) })
    }
}

/// A pool record of a live arena.
///
/// Invariant: made by [`PoolPtr::new`] and [`NoPool::as_ptr`] alone, whose callers promise what the methods rely on.
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
    pub(crate) unsafe fn new(record: NonNull<Pool>) -> Self {
        Self(record)
    }

    #[inline(always)]
    fn get(&self) -> &Pool {
        // SAFETY: `new` 1 and 2: mapped, and not written while `self` is borrowed by this single caller.
        unsafe { self.0.as_ref() }
    }

    #[inline(always)]
    fn get_mut(&mut self) -> &mut Pool {
        // SAFETY: `new` 1 and 2; each borrow ends inside the method that took it.
        unsafe { self.0.as_mut() }
    }

    /// Takes the block that was freed last; `None` if no freed block is left.
    #[inline(always)]
    pub(crate) fn pop(mut self) -> Option<NonNull<u8>> {
        let block = NonNull::new(self.get().list)?;
        let pool = self.get_mut();
        // SAFETY: invariant 4: `block` is on the list of freed blocks.
        pool.list = unsafe { read_link(block) };
        pool.live += 1;
        Some(block)
    }

    /// Is this the record of a used pool of the allocator with this key?
    #[inline(always)]
    pub(crate) fn has_key(self, key: u32) -> bool {
        self.get().key == key
    }

    /// Puts a live block on the list; returns whether it was the last one, and the pool not the first of its class.
    ///
    /// # Safety
    ///
    /// 1. `block` is a live block of this pool, which is not used afterwards.
    #[inline(always)]
    pub(crate) unsafe fn push(mut self, block: NonNull<u8>) -> bool {
        let pool = self.get_mut();
        // SAFETY: 1: the block is the pool's now.
        unsafe { write_link(block, pool.list) };
        pool.list = block.as_ptr();
        pool.live -= 1;
        pool.live == 0
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

    pub(crate) fn set_key(mut self, key: u32) {
        self.get_mut().key = key;
    }

    pub(crate) fn class(self) -> Option<SizeClass> {
        SizeClass::from_byte(self.get().class)
    }

    /// Blocks handed out.
    pub(crate) fn live_blocks(self) -> usize {
        let is_first = self.get().key != 0 && self.get().prev.is_none();
        usize::from(self.get().live) - usize::from(is_first)
    }

    /// Counts one block more: the pool becomes the first of its class.
    pub(crate) fn hold(mut self) {
        self.get_mut().live += 1;
    }

    /// Takes `hold` back.
    pub(crate) fn let_go(mut self) {
        self.get_mut().live -= 1;
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

    /// Address of the first block.
    pub(crate) fn base(self) -> NonNull<u8> {
        // SAFETY: `new` 1: the pool is in the same arena.
        unsafe { self.first_unit().add(self.unit() << POOL_SHIFT) }
    }

    #[expect(clippy::mut_from_ref, reason = "the map is the record's, as if it were a field")]
    fn idle(&self) -> &mut IdleMap {
        let window = self.0.addr().get() % POOL_BYTES / PAGE_BYTES;
        let offset = idle_offset(window, self.unit());
        // SAFETY: `idle_offset` stays in the first unit.
        let map = unsafe { self.first_unit().add(offset) };
        // SAFETY: `new` 1 and 2, as for the record; each borrow ends inside the method that took it.
        unsafe { &mut *map.cast().as_ptr() }
    }

    /// Starts the pool's life in `class`: all blocks idle, in no list.
    pub(crate) fn open(mut self, class: SizeClass) {
        let blocks = class.blocks_per_pool();
        let pool = self.get_mut();
        pool.live = 0;
        pool.class = class.byte();
        pool.first_word = 0;
        pool.list = core::ptr::null_mut();
        pool.next = None;
        pool.prev = None;
        // Words past the class's blocks stay zero: they are neither read nor resident.
        let (whole, rest) = (blocks / 64, blocks % 64);
        let idle = self.idle();
        idle[..whole].fill(u64::MAX);
        if rest > 0 {
            idle[whole] = (1 << rest) - 1;
        }
    }

    /// Ends the pool's life in its class. None of its blocks is live.
    pub(crate) fn close(mut self) {
        self.idle().fill(0);
        let pool = self.get_mut();
        pool.class = 0;
        pool.key = 0;
    }

    /// Moves some idle blocks, those of the lowest addresses, to the empty list; `false` if there are none.
    pub(crate) fn extend(mut self, class: SizeClass) -> bool {
        let (size, base) = (class.size(), self.base());
        let mut want = (EXTEND_BYTES / size).max(1);
        let mut last: Option<NonNull<u8>> = None;
        let mut word = usize::from(self.get().first_word);
        let idle = self.idle();
        let mut first = core::ptr::null_mut();
        while word < IDLE_WORDS && want > 0 {
            let mut bits = idle[word];
            while bits != 0 && want > 0 {
                let index = word * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                want -= 1;
                // SAFETY: invariant 3 of `open`: set bits stand for blocks of the pool.
                let block = unsafe { base.add(index * size) };
                match last {
                    None => first = block.as_ptr(),
                    // SAFETY: an idle block, which is on its way to the list.
                    Some(last) => unsafe { write_link(last, block.as_ptr()) },
                }
                last = Some(block);
            }
            idle[word] = bits;
            if bits == 0 {
                word += 1;
            }
        }
        self.get_mut().first_word = word.min(IDLE_WORDS - 1) as u8;
        let Some(last) = last else { return false };
        // SAFETY: as above.
        unsafe { write_link(last, core::ptr::null_mut()) };
        self.get_mut().list = first;
        true
    }

    /// Makes every freed block idle again, so that nothing is kept in it.
    pub(crate) fn make_idle(mut self) {
        let Some(class) = self.class() else { return };
        let base = self.base().addr().get();
        let mut next = NonNull::new(self.get().list);
        while let Some(block) = next {
            let index = class.geometry().block_at(block.addr().get() - base);
            self.idle()[index / 64] |= 1 << (index % 64);
            // SAFETY: invariant 4.
            next = NonNull::new(unsafe { read_link(block) });
        }
        let pool = self.get_mut();
        pool.list = core::ptr::null_mut();
        pool.first_word = 0;
    }

    /// Is the block at `index` idle?
    pub(crate) fn is_idle(self, index: usize) -> bool {
        self.idle()[index / 64] >> (index % 64) & 1 == 1
    }

    /// The freed blocks, last freed first.
    pub(crate) fn freed(self) -> impl Iterator<Item = NonNull<u8>> {
        // SAFETY: invariant 4.
        core::iter::successors(NonNull::new(self.get().list), |block| unsafe {
            NonNull::new(read_link(*block))
        })
    }

    /// Asserts invariants 2 to 4.
    pub(crate) fn check(self) {
        let Some(class) = self.class() else { return };
        let idle = self.idle();
        let first = usize::from(self.get().first_word);
        assert!(idle[..first].iter().all(|word| *word == 0), "pool invariant 3");
        let mut seen = *idle;
        let base = self.base().addr().get();
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
        let blocks = class.blocks_per_pool();
        assert_eq!(
            free as usize + self.live_blocks(),
            blocks,
            "pool invariant 2: every block is live or free"
        );
        let beyond = (blocks..IDLE_WORDS * 64).any(|index| self.is_idle(index));
        assert!(!beyond, "an idle block beyond the pool's end");
    }
}

/// Offset of a unit's idle map from the start of an arena's first unit, when the records are in its page `window`.
pub(crate) const fn idle_offset(window: usize, unit: usize) -> usize {
    const MAPS: usize = PAGE_BYTES / size_of::<IdleMap>();
    let page = (window + 1 + unit / MAPS) % (POOL_BYTES / PAGE_BYTES);
    page * PAGE_BYTES + unit % MAPS * size_of::<IdleMap>()
}

const _: () = assert!(
    ARENA_UNITS * size_of::<IdleMap>() <= POOL_BYTES - PAGE_BYTES,
    "the idle maps fill the pages beside that of the records"
);
