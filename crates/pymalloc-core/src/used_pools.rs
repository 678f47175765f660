//! Owns the lists of used pools: for each class, the pools with a free block.

use crate::pool::PoolPtr;
use crate::size_class::SizeClass;

/// One list a class.
///
/// Invariant 1: list c holds exactly the open pools of class c with at least one free block and at least one
/// block out (handed out or in a magazine). A full pool is in no list, an empty one is back in its arena.
pub(crate) struct UsedPools {
    heads: [Option<PoolPtr>; SizeClass::COUNT],
}

impl UsedPools {
    pub(crate) const fn new() -> Self {
        Self { heads: [None; SizeClass::COUNT] }
    }

    #[inline]
    pub(crate) fn first(&self, class: SizeClass) -> Option<PoolPtr> {
        self.heads[class.index()]
    }

    /// Puts `pool`, which is in no list, at the front: what was freed last is hot.
    #[inline]
    pub(crate) fn push_front(&mut self, class: SizeClass, pool: PoolPtr) {
        let head = &mut self.heads[class.index()];
        pool.set_prev(None);
        pool.set_next(*head);
        if let Some(old) = *head {
            old.set_prev(Some(pool));
        }
        *head = Some(pool);
    }

    /// Takes `pool` out of its list.
    #[inline]
    pub(crate) fn unlink(&mut self, class: SizeClass, pool: PoolPtr) {
        let (prev, next) = (pool.prev(), pool.next());
        match prev {
            Some(prev) => prev.set_next(next),
            None => self.heads[class.index()] = next,
        }
        if let Some(next) = next {
            next.set_prev(prev);
        }
        pool.set_prev(None);
        pool.set_next(None);
    }

    /// The pools of `class` with a free block, first to last.
    pub(crate) fn iter(&self, class: SizeClass) -> impl Iterator<Item = PoolPtr> {
        core::iter::successors(self.first(class), |pool| pool.next())
    }
}
