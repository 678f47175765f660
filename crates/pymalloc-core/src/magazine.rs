//! Owns the magazines: for each class a short stack of free blocks that the hot paths push to and pop from.
//!
//! The block freed last is handed out first, while it is in the cache, and neither path touches a pool's record.

use crate::config::POOL_BYTES;
use crate::size_class::SizeClass;

/// Slots of a magazine.
pub(crate) const SLOTS: usize = 64;

/// Rows: a class byte is an index, and row 0 stands for "no class".
const ROWS: usize = SizeClass::COUNT + 1;

#[derive(Clone, Copy)]
#[repr(C)]
struct Level {
    /// Invariant 1: at most `limit`, which is at most `SLOTS`. Slots below `len` hold free blocks of the class.
    len: u32,
    /// 0 before the first use, and always in row 0: every pop finds nothing and every push no room.
    limit: u32,
}

/// Stacks of free blocks, one a class.
#[repr(C)]
pub(crate) struct Magazines {
    levels: [Level; ROWS],
    slots: [[*mut u8; SLOTS]; ROWS],
}

impl Magazines {
    pub(crate) const fn new() -> Self {
        Self {
            levels: [Level { len: 0, limit: 0 }; ROWS],
            slots: [[core::ptr::null_mut(); SLOTS]; ROWS],
        }
    }

    /// Sets the limits; before that every call takes the slow path.
    pub(crate) fn open(&mut self) {
        for class in SizeClass::all() {
            self.levels[usize::from(class.byte())].limit = Self::limit_of(class);
        }
    }

    /// Blocks that a magazine may hold: a pool's worth of bytes at most, and at least two.
    const fn limit_of(class: SizeClass) -> u32 {
        let blocks = POOL_BYTES / class.size();
        if blocks > SLOTS {
            SLOTS as u32
        } else if blocks < 2 {
            2
        } else {
            blocks as u32
        }
    }

    /// Pops a block of the class with this byte; `None` if there is none.
    #[inline(always)]
    pub(crate) fn pop(&mut self, class: u8) -> Option<*mut u8> {
        let row = usize::from(class);
        // SAFETY: a class byte is below `ROWS`.
        let level = unsafe { self.levels.get_unchecked_mut(row) };
        let len = level.len.checked_sub(1)?;
        level.len = len;
        // SAFETY: as above.
        let slots = unsafe { self.slots.get_unchecked(row) };
        // SAFETY: invariant 1: `len` was at most `SLOTS`, and is one less now.
        Some(unsafe { *slots.get_unchecked(len as usize) })
    }

    /// Pushes a block of the class with this byte; `false` if there is no room.
    #[inline(always)]
    pub(crate) fn push(&mut self, class: u8, block: *mut u8) -> bool {
        let row = usize::from(class);
        // SAFETY: a class byte is below `ROWS`.
        let level = unsafe { self.levels.get_unchecked_mut(row) };
        let len = level.len;
        if len == level.limit {
            return false;
        }
        level.len = len + 1;
        // SAFETY: as above.
        let slots = unsafe { self.slots.get_unchecked_mut(row) };
        // SAFETY: invariant 1: `len` is below `limit`, which is at most `SLOTS`.
        unsafe { *slots.get_unchecked_mut(len as usize) = block };
        true
    }

    pub(crate) fn len(&self, class: SizeClass) -> usize {
        self.levels[usize::from(class.byte())].len as usize
    }

    pub(crate) fn limit(&self, class: SizeClass) -> usize {
        self.levels[usize::from(class.byte())].limit as usize
    }

    /// The slots of `class`, full ones first.
    pub(crate) fn slots(&mut self, class: SizeClass) -> &mut [*mut u8; SLOTS] {
        &mut self.slots[usize::from(class.byte())]
    }

    pub(crate) fn set_len(&mut self, class: SizeClass, len: usize) {
        debug_assert!(len <= self.limit(class), "magazine invariant 1");
        self.levels[usize::from(class.byte())].len = len as u32;
    }

    /// The blocks in the magazine of `class`.
    pub(crate) fn blocks(&self, class: SizeClass) -> &[*mut u8] {
        &self.slots[usize::from(class.byte())][..self.len(class)]
    }
}
