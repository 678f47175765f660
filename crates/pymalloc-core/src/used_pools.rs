//! Owns the lists of used pools: for each class, the pools that can give a block.

use crate::pool::{NO_POOL, PoolPtr};
use crate::size_class::SizeClass;

/// Rows: a class byte is an index, and row 0 stands for "no class".
const ROWS: usize = SizeClass::COUNT + 1;

/// One list a class, and its first pool at hand for the hot path.
///
/// Invariant 1: list c holds exactly the open pools of class c with a freed or an idle block, and they have the
/// allocator's key; only its first may have become full since, or have no live block. Other full pools are in no list,
/// other empty ones back in their arenas.
#[repr(C)]
pub(crate) struct UsedPools {
    /// The first pool of each row, `NO_POOL` in an empty one.
    heads: [PoolPtr; ROWS],
}

impl UsedPools {
    pub(crate) const fn new() -> Self {
        Self { heads: [NO_POOL.as_ptr(); ROWS] }
    }

    /// The first pool of the row of a class byte, or one that never has a block.
    ///
    /// # Safety
    ///
    /// 1. `row` is a class byte, or 0.
    #[inline(always)]
    pub(crate) unsafe fn head(&self, row: u8) -> PoolPtr {
        // SAFETY: 1: class bytes are at most `SizeClass::COUNT`.
        unsafe { *self.heads.get_unchecked(usize::from(row)) }
    }

    #[inline]
    pub(crate) fn first(&self, class: SizeClass) -> Option<PoolPtr> {
        let head = self.heads[usize::from(class.byte())];
        (head != NO_POOL.as_ptr()).then_some(head)
    }

    /// Puts `pool`, which is in no list, behind the first pool: that one goes on until it has no block left, so that a
    /// full pool whose blocks come and go one at a time is not taken up each time.
    pub(crate) fn insert(&mut self, class: SizeClass, pool: PoolPtr, key: u32) {
        pool.set_key(key);
        match self.first(class) {
            None => {
                self.heads[usize::from(class.byte())] = pool;
                pool.hold();
            }
            Some(first) => {
                let second = first.next();
                pool.set_prev(Some(first));
                pool.set_next(second);
                first.set_next(Some(pool));
                if let Some(second) = second {
                    second.set_prev(Some(pool));
                }
            }
        }
    }

    /// Takes `pool` out of its list.
    pub(crate) fn unlink(&mut self, class: SizeClass, pool: PoolPtr) {
        let (prev, next) = (pool.prev(), pool.next());
        match prev {
            Some(prev) => prev.set_next(next),
            None => {
                self.heads[usize::from(class.byte())] = next.unwrap_or(NO_POOL.as_ptr());
                pool.let_go();
                if let Some(next) = next {
                    next.hold();
                }
            }
        }
        if let Some(next) = next {
            next.set_prev(prev);
        }
        pool.set_prev(None);
        pool.set_next(None);
        pool.set_key(0);
    }

    /// The used pools of `class`, first to last.
    pub(crate) fn iter(&self, class: SizeClass) -> impl Iterator<Item = PoolPtr> {
        core::iter::successors(self.first(class), |pool| pool.next())
    }
}
