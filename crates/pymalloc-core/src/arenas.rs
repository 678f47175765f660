//! Owns the order of arenas: by number of free pools, so that the fullest is used first and empty ones can go back.

use crate::arena::{ArenaPtr, Kind};
use crate::config::{ARENA_UNITS, POOL_BYTES};

/// Every arena of an allocator.
///
/// CPython keeps one list sorted by the number of free pools and an array of places in it; a list for each
/// number and a word of bits say the same with O(1) moves.
pub(crate) struct Arenas {
    /// Invariant 1: list n of a kind holds exactly its arenas with n free pools, some of them in use; n = 0 is
    /// in no list.
    by_free_pools: [[Option<ArenaPtr>; ARENA_UNITS]; 2],
    /// Invariant 2: bit n is set if list n is not empty.
    nonempty: [u64; 2],
    /// Invariant 3: exactly the arenas without a pool in use, the hottest first.
    empty: Option<ArenaPtr>,
    empty_count: usize,
    /// Invariant 4: every arena.
    all: Option<ArenaPtr>,
    count: usize,
    /// Invariant 5: units of free pools that are resident, in all arenas.
    resident_free_units: usize,
}

impl Arenas {
    pub(crate) const fn new() -> Self {
        Self {
            by_free_pools: [[None; ARENA_UNITS]; 2],
            nonempty: [0; 2],
            empty: None,
            empty_count: 0,
            all: None,
            count: 0,
            resident_free_units: 0,
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Bytes of free pools whose memory has not gone back to the system.
    #[inline]
    pub(crate) fn resident_free_bytes(&self) -> usize {
        self.resident_free_units * POOL_BYTES
    }

    /// Takes a free pool of `arena`; see [`ArenaPtr::take_pool`].
    pub(crate) fn take_pool(&mut self, arena: ArenaPtr) -> (usize, bool) {
        let (unit, resident) = arena.take_pool();
        if resident {
            self.resident_free_units -= arena.kind().units();
        }
        (unit, resident)
    }

    /// Gives the closed pool at `unit` of `arena` back.
    pub(crate) fn give_pool(&mut self, arena: ArenaPtr, unit: usize) {
        arena.give_pool(unit);
        self.resident_free_units += arena.kind().units();
    }

    /// Notes that `count` free pools of `arena` after the one at `unit` have been populated.
    pub(crate) fn set_resident_after(&mut self, arena: ArenaPtr, unit: usize, count: usize) {
        arena.set_resident_after(unit, count);
        self.resident_free_units += count * arena.kind().units();
    }

    /// Notes that the memory of the free pools of `mask`, which were resident, went back to the system.
    pub(crate) fn set_purged(&mut self, arena: ArenaPtr, mask: u64) {
        arena.set_purged(mask);
        self.resident_free_units -= mask.count_ones() as usize * arena.kind().units();
    }

    /// An arena with resident free pools among pools in use, one with the most free pools first.
    pub(crate) fn emptiest_first(&self) -> impl Iterator<Item = ArenaPtr> {
        (1..ARENA_UNITS).rev().flat_map(move |free_pools| {
            self.by_free_pools.iter().flat_map(move |lists| {
                core::iter::successors(lists[free_pools], |arena| arena.next())
            })
        })
    }

    /// Enters a new arena as an empty one.
    pub(crate) fn add(&mut self, arena: ArenaPtr) {
        arena.set_all_prev(None);
        arena.set_all_next(self.all);
        if let Some(old) = self.all {
            old.set_all_prev(Some(arena));
        }
        self.all = Some(arena);
        self.count += 1;
        self.resident_free_units +=
            arena.resident_mask().count_ones() as usize * arena.kind().units();
        self.push_empty(arena);
    }

    /// Takes the empty arena that was used last out of all lists.
    pub(crate) fn remove_empty(&mut self) -> Option<ArenaPtr> {
        let arena = self.pop_empty()?;
        self.resident_free_units -=
            arena.resident_mask().count_ones() as usize * arena.kind().units();
        let (prev, next) = (arena.all_prev(), arena.all_next());
        match prev {
            Some(prev) => prev.set_all_next(next),
            None => self.all = next,
        }
        if let Some(next) = next {
            next.set_all_prev(prev);
        }
        self.count -= 1;
        Some(arena)
    }

    /// The fullest arena of `kind` with a free pool, else an empty one, which then is of that kind.
    #[inline]
    pub(crate) fn fullest(&mut self, kind: Kind) -> Option<ArenaPtr> {
        let bits = self.nonempty[kind as usize];
        if bits != 0 {
            return self.by_free_pools[kind as usize][bits.trailing_zeros() as usize];
        }
        let arena = self.pop_empty()?;
        // The change of kind can lose the parts of pools that were resident.
        self.resident_free_units -=
            arena.resident_mask().count_ones() as usize * arena.kind().units();
        arena.set_kind(kind);
        self.resident_free_units +=
            arena.resident_mask().count_ones() as usize * arena.kind().units();
        self.push(arena, arena.free_pools());
        Some(arena)
    }

    /// Moves `arena`, which had `before` free pools and has another number now, to its place.
    pub(crate) fn moved(&mut self, arena: ArenaPtr, before: usize) {
        if before > 0 {
            self.unlink(arena, before);
        }
        let now = arena.free_pools();
        if now == arena.pools() {
            self.push_empty(arena);
        } else if now > 0 {
            self.push(arena, now);
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = ArenaPtr> {
        core::iter::successors(self.all, |arena| arena.all_next())
    }

    fn push(&mut self, arena: ArenaPtr, free_pools: usize) {
        let head = &mut self.by_free_pools[arena.kind() as usize][free_pools];
        arena.set_prev(None);
        arena.set_next(*head);
        if let Some(old) = *head {
            old.set_prev(Some(arena));
        }
        *head = Some(arena);
        self.nonempty[arena.kind() as usize] |= 1 << free_pools;
    }

    fn unlink(&mut self, arena: ArenaPtr, free_pools: usize) {
        let head = &mut self.by_free_pools[arena.kind() as usize][free_pools];
        let (prev, next) = (arena.prev(), arena.next());
        match prev {
            Some(prev) => prev.set_next(next),
            None => *head = next,
        }
        if let Some(next) = next {
            next.set_prev(prev);
        }
        if head.is_none() {
            self.nonempty[arena.kind() as usize] &= !(1 << free_pools);
        }
    }

    fn push_empty(&mut self, arena: ArenaPtr) {
        arena.set_prev(None);
        arena.set_next(self.empty);
        if let Some(old) = self.empty {
            old.set_prev(Some(arena));
        }
        self.empty = Some(arena);
        self.empty_count += 1;
    }

    fn pop_empty(&mut self) -> Option<ArenaPtr> {
        let arena = self.empty?;
        self.empty = arena.next();
        if let Some(next) = self.empty {
            next.set_prev(None);
        }
        self.empty_count -= 1;
        Some(arena)
    }

    /// Asserts invariants 1 to 4.
    pub(crate) fn check(&self) {
        let mut listed = 0;
        for kind in Kind::ALL {
            for (free_pools, head) in self.by_free_pools[kind as usize].iter().enumerate() {
                let bit = self.nonempty[kind as usize] >> free_pools & 1 == 1;
                assert_eq!(head.is_some(), bit, "arenas invariant 2");
                for arena in core::iter::successors(*head, |arena| arena.next()) {
                    assert_eq!(arena.free_pools(), free_pools, "arenas invariant 1: place");
                    assert!(free_pools > 0 && free_pools < arena.pools(), "arenas invariant 1");
                    assert_eq!(arena.kind() as usize, kind as usize, "arenas invariant 1: kind");
                    listed += 1;
                }
            }
        }
        let mut empty = 0;
        for arena in core::iter::successors(self.empty, |arena| arena.next()) {
            assert_eq!(arena.free_pools(), arena.pools(), "arenas invariant 3");
            empty += 1;
        }
        assert_eq!(empty, self.empty_count, "arenas invariant 3: count");
        let full = self.iter().filter(|arena| arena.free_pools() == 0).count();
        assert_eq!(self.iter().count(), self.count, "arenas invariant 4");
        let resident: usize = self
            .iter()
            .map(|arena| arena.resident_mask().count_ones() as usize * arena.kind().units())
            .sum();
        assert_eq!(resident, self.resident_free_units, "arenas invariant 5");
        assert_eq!(listed + empty + full, self.count, "arenas invariants 1 and 3: complete");
    }
}
