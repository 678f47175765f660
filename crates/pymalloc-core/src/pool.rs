//! Owns a pool's record: which of its blocks are free, as bits outside the pool. Leaves the lists of pools to
//! `used_pools.rs` and the record's place to `arena.rs`.

use core::ptr::NonNull;

use crate::config::{GRAIN_BYTES, POOL_BYTES};
use crate::size_class::SizeClass;

/// Words of a pool's bitmap: a bit for each block of the smallest class.
pub(crate) const BITMAP_WORDS: usize = POOL_BYTES / GRAIN_BYTES / 64;

/// The record of a pool. Zero bytes are a valid record: a pool without a class.
///
/// A block's link lives nowhere in the block: a freed block keeps its bytes, and a write after free cannot damage
/// the allocator.
#[repr(C)]
pub(crate) struct Pool {
    /// Invariant 1: neighbours in the list of used pools of the class; both `None` outside a list.
    next: Option<PoolPtr>,
    prev: Option<PoolPtr>,
    /// Address of the first block.
    base: *mut u8,
    /// Invariant 2: the number of bits set in `free`.
    free_blocks: u16,
    /// The class byte, 0 for a pool that belongs to no class.
    class: u8,
    /// Invariant 3: no bit is set in the words before this one.
    first_word: u8,
    /// Invariant 4: bit i is set if block i is neither handed out nor in a magazine; no bit is set from the
    /// class's number of blocks on.
    free: [u64; BITMAP_WORDS],
}

const _: () = assert!(BITMAP_WORDS <= u8::MAX as usize);

/// A pool record of a live arena.
///
/// Invariant: made by [`PoolPtr::new`] alone, whose caller promises what the methods rely on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub(crate) struct PoolPtr(NonNull<Pool>);

impl PoolPtr {
    /// # Safety
    ///
    /// 1. `record` is a `Pool` of an arena that stays mapped while this handle, or a copy, is used.
    /// 2. Nobody else reads or writes the record meanwhile but through handles of the same allocator, on which
    ///    the caller has exclusive access.
    #[inline]
    pub(crate) unsafe fn new(record: NonNull<Pool>) -> Self {
        Self(record)
    }

    #[inline]
    fn get(&self) -> &Pool {
        // SAFETY: `new` 1 and 2: mapped, and not written while `self` is borrowed by this single caller.
        unsafe { self.0.as_ref() }
    }

    #[inline]
    fn get_mut(&mut self) -> &mut Pool {
        // SAFETY: `new` 1 and 2; each borrow ends inside the method that took it.
        unsafe { self.0.as_mut() }
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

    pub(crate) fn base(self) -> *mut u8 {
        self.get().base
    }

    pub(crate) fn class(self) -> Option<SizeClass> {
        SizeClass::from_byte(self.get().class)
    }

    pub(crate) fn free_blocks(self) -> usize {
        usize::from(self.get().free_blocks)
    }

    /// Starts the pool's life in `class`: all blocks free.
    pub(crate) fn open(mut self, base: *mut u8, class: SizeClass) {
        let pool = self.get_mut();
        let blocks = class.blocks_per_pool();
        pool.next = None;
        pool.prev = None;
        pool.base = base;
        pool.class = class.byte();
        pool.free_blocks = blocks as u16;
        pool.first_word = 0;
        // Words past the class's blocks stay zero: they are neither read nor resident.
        let (whole, rest) = (blocks / 64, blocks % 64);
        pool.free[..whole].fill(u64::MAX);
        if rest > 0 {
            pool.free[whole] = (1 << rest) - 1;
        }
    }

    /// Ends the pool's life in its class. All of its blocks are free.
    pub(crate) fn close(mut self) {
        let pool = self.get_mut();
        let words = SizeClass::from_byte(pool.class)
            .map_or(0, |class| class.blocks_per_pool().div_ceil(64));
        pool.free[..words].fill(0);
        pool.class = 0;
        pool.free_blocks = 0;
    }

    /// Takes up to `out.len()` free blocks, lowest address first; returns how many.
    #[inline]
    pub(crate) fn take(mut self, out: &mut [*mut u8], size: usize) -> usize {
        let pool = self.get_mut();
        let want = out.len().min(usize::from(pool.free_blocks));
        let mut taken = 0;
        let mut word = usize::from(pool.first_word);
        while taken < want {
            let mut bits = pool.free[word];
            while bits != 0 && taken < want {
                let block = word * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                out[taken] = pool.base.wrapping_add(block * size);
                taken += 1;
            }
            pool.free[word] = bits;
            if bits == 0 {
                word += 1;
            }
        }
        pool.first_word = word.min(BITMAP_WORDS - 1) as u8;
        pool.free_blocks -= taken as u16;
        taken
    }

    /// Gives `block` back; returns how many were free before, or `None` if that one already was.
    #[inline]
    pub(crate) fn give(mut self, block: usize) -> Option<usize> {
        let pool = self.get_mut();
        let word = block / 64;
        let bit = 1 << (block % 64);
        let bits = pool.free.get_mut(word)?;
        if *bits & bit != 0 {
            return None;
        }
        *bits |= bit;
        pool.first_word = pool.first_word.min(word as u8);
        let before = pool.free_blocks;
        pool.free_blocks = before + 1;
        Some(usize::from(before))
    }

    /// Is `block` neither handed out nor in a magazine?
    pub(crate) fn is_free(self, block: usize) -> bool {
        self.get().free.get(block / 64).is_some_and(|bits| bits >> (block % 64) & 1 == 1)
    }

    /// Asserts invariants 2 to 4.
    pub(crate) fn check(self) {
        let pool = self.get();
        let set: u32 = pool.free.iter().map(|word| word.count_ones()).sum();
        assert_eq!(set, u32::from(pool.free_blocks), "pool invariant 2: count of free blocks");
        let blank = &pool.free[..usize::from(pool.first_word)];
        assert!(
            blank.iter().all(|word| *word == 0),
            "pool invariant 3: first word with a free block"
        );
        let blocks = self.class().map_or(0, SizeClass::blocks_per_pool);
        let beyond = (blocks..BITMAP_WORDS * 64).any(|block| self.is_free(block));
        assert!(!beyond, "pool invariant 4: a free block beyond the pool's end");
    }
}
