//! Owns the order of arenas: by number of free places, so that the fullest is used first and empty ones can go back.

use core::ptr::NonNull;

use crate::arena::{ArenaPtr, Kind};
use crate::config::{ARENA_UNITS, POOL_BYTES};
use crate::lane::{Lane, PerLane};
use crate::policy::FULLEST_MAX;

/// The list of all arenas, after those for each kind of pool.
const ALL: usize = Kind::ALL.len();

/// Every arena of an allocator.
///
/// CPython keeps one list sorted by the number of free pools and an array of places in it; a list for each
/// number and a word of bits say the same with O(1) moves.
pub(crate) struct Arenas {
    places: PerLane<Places>,
    /// Invariant 3: exactly the arenas without a pool in use, the hottest first; linked as small ones.
    empty: Option<ArenaPtr>,
    /// Invariant 4: every arena.
    all: Option<ArenaPtr>,
    /// Arenas now, the most at a time, and all that ever were.
    count: usize,
    peak: usize,
    ever: usize,
    /// Walks under way, which need every arena to stay.
    pins: usize,
    /// Invariant 5: free units that are resident, in all arenas.
    resident_free_units: usize,
}

/// The arenas of a lane with free places among pools in use.
struct Places {
    /// Invariant 1: list n of a kind holds exactly the lane's arenas with n free places for its pools, and with some pool in use;
    /// n = 0 is in no list.
    by_count: [[Option<ArenaPtr>; ARENA_UNITS]; Kind::ALL.len()],
    /// Invariant 2: bit n is set if list n is not empty.
    nonempty: [u64; Kind::ALL.len()],
}

impl Places {
    const fn new() -> Self {
        Self { by_count: [[None; ARENA_UNITS]; Kind::ALL.len()], nonempty: [0; Kind::ALL.len()] }
    }
}

impl Arenas {
    pub(crate) const fn new() -> Self {
        Self {
            places: PerLane::new(Places::new()),
            empty: None,
            all: None,
            count: 0,
            peak: 0,
            ever: 0,
            pins: 0,
            resident_free_units: 0,
        }
    }

    /// Arenas now.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// The most arenas at a time.
    pub(crate) fn peak(&self) -> usize {
        self.peak
    }

    /// Arenas obtained so far.
    pub(crate) fn ever(&self) -> usize {
        self.ever
    }

    /// Bytes of free units whose memory has not gone back to the system.
    #[inline]
    pub(crate) fn resident_free_bytes(&self) -> usize {
        self.resident_free_units * POOL_BYTES
    }

    /// Takes a pool of `kind` from the lane's fullest arena with a place for one, of the fullest few one whose place is resident, else
    /// from an empty one; returns the arena, the pool's first unit, and which of its units are resident.
    pub(crate) fn take_pool(&mut self, kind: Kind, lane: Lane) -> Option<(ArenaPtr, usize, u64)> {
        let arena = match self.fullest_with_memory(kind, lane) {
            Some(arena) => {
                self.unlist(arena);
                arena
            }
            None => {
                let arena = self.pop_empty()?;
                arena.set_lane(lane);
                arena
            }
        };
        let (unit, resident) = arena.take_pool(kind);
        self.resident_free_units -= resident.count_ones() as usize;
        self.list(arena);
        Some((arena, unit, resident))
    }

    /// The fullest arena of `lane` with a place for `kind`; of the fullest few one whose place has memory, if there is one.
    fn fullest_with_memory(&self, kind: Kind, lane: Lane) -> Option<ArenaPtr> {
        let has_memory = |arena: &ArenaPtr| arena.has_resident_place(kind);
        let mut fullest = self.fullest_first(kind, lane).take(FULLEST_MAX);
        let first = fullest.next()?;
        if self.resident_free_units == 0 || has_memory(&first) {
            return Some(first);
        }
        fullest.find(has_memory).or(Some(first))
    }

    /// Arenas of `lane` with places for `kind` among pools in use, those with the fewest first.
    fn fullest_first(&self, kind: Kind, lane: Lane) -> impl Iterator<Item = ArenaPtr> {
        let Places { by_count, nonempty } = self.places.get(lane);
        let heads = &by_count[kind as usize];
        let mut bits = nonempty[kind as usize];
        let lists = core::iter::from_fn(move || {
            let places = bits.trailing_zeros() as usize;
            bits &= bits.checked_sub(1)?;
            Some(heads[places])
        });
        lists.flat_map(move |head| Self::along(head, kind as usize))
    }

    /// Gives the closed pool of `kind` at `unit` of `arena` back.
    pub(crate) fn give_pool(&mut self, arena: ArenaPtr, unit: usize, kind: Kind) {
        self.unlist(arena);
        arena.give_pool(unit, kind);
        self.resident_free_units += kind.units();
        self.list(arena);
    }

    /// Notes that the free units of `mask`, which had no memory, are resident now.
    pub(crate) fn set_resident(&mut self, arena: ArenaPtr, mask: u64) {
        arena.set_resident(mask);
        self.resident_free_units += mask.count_ones() as usize;
    }

    /// Notes that the memory of the free units of `mask`, which were resident, went back to the system.
    pub(crate) fn set_purged(&mut self, arena: ArenaPtr, mask: u64) {
        arena.set_purged(mask);
        self.resident_free_units -= mask.count_ones() as usize;
    }

    /// Arenas with free units among pools in use, those with the most free units first.
    pub(crate) fn emptiest_first(&self) -> impl Iterator<Item = ArenaPtr> {
        let count = |places| self.places.lanes().map(move |lane| (places, lane));
        let lists = (0..ARENA_UNITS).rev().flat_map(count);
        let head = |(places, lane)| self.places.get(lane).by_count[Kind::Single as usize][places];
        lists.flat_map(move |list| Self::along(head(list), Kind::Single as usize))
    }

    /// Lets `lane` have arenas; `false` without memory.
    pub(crate) fn open(
        &mut self,
        lane: Lane,
        place: impl FnOnce(usize) -> Option<NonNull<u8>>,
    ) -> bool {
        self.places.open(lane, Places::new, place)
    }

    /// Gives the arenas of `lane` to the first.
    pub(crate) fn close(&mut self, lane: Lane) {
        let mut next = self.all;
        while let Some(arena) = next {
            next = Self::after(arena);
            if arena.lane() == lane && !arena.is_empty() {
                self.unlist(arena);
                arena.set_lane(Lane::FIRST);
                self.list(arena);
            }
        }
        self.places.close(lane);
    }

    /// Enters a new arena as an empty one; all of it is resident, or nothing.
    pub(crate) fn add(&mut self, arena: ArenaPtr, resident: bool) {
        Self::push(&mut self.all, arena, ALL);
        self.count += 1;
        self.ever += 1;
        self.peak = self.peak.max(self.count);
        if resident {
            arena.set_resident(arena.free_mask());
            self.resident_free_units += arena.units();
        }
        Self::push(&mut self.empty, arena, Kind::Single as usize);
    }

    /// Keeps every arena until [`unpin`](Self::unpin).
    pub(crate) fn pin(&mut self) {
        self.pins += 1;
    }

    pub(crate) fn unpin(&mut self) {
        self.pins -= 1;
    }

    /// Takes the empty arena that was used last out of all lists; `None` if there is none, or while arenas are pinned.
    pub(crate) fn remove_empty(&mut self) -> Option<ArenaPtr> {
        if self.pins > 0 {
            return None;
        }
        let arena = self.pop_empty()?;
        self.resident_free_units -= arena.resident_mask().count_ones() as usize;
        Self::unlink(&mut self.all, arena, ALL);
        self.count -= 1;
        Some(arena)
    }

    /// Every arena, in no list any more. Each is read before it is handed out, so that it may go.
    pub(crate) fn take_all(&mut self) -> impl Iterator<Item = ArenaPtr> + use<> {
        Self::along(core::mem::replace(self, Self::new()).all, ALL)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = ArenaPtr> {
        Self::along(self.all, ALL)
    }

    /// The arena with which [`iter`](Self::iter) begins.
    pub(crate) fn first(&self) -> Option<ArenaPtr> {
        self.all
    }

    /// The arena after `arena`; arenas that come later are before the first.
    pub(crate) fn after(arena: ArenaPtr) -> Option<ArenaPtr> {
        arena.links(ALL).next
    }

    /// Enters `arena` where its free places belong.
    fn list(&mut self, arena: ArenaPtr) {
        if arena.is_empty() {
            Self::push(&mut self.empty, arena, Kind::Single as usize);
            return;
        }
        for kind in Kind::ALL {
            let places = arena.free_places(kind);
            if places > 0 {
                let lists = self.places.get_mut(arena.lane());
                Self::push(&mut lists.by_count[kind as usize][places], arena, kind as usize);
                lists.nonempty[kind as usize] |= 1 << places;
            }
        }
    }

    /// Takes `arena`, in which a pool is in use, out of the lists of free places.
    fn unlist(&mut self, arena: ArenaPtr) {
        for kind in Kind::ALL {
            let places = arena.free_places(kind);
            if places > 0 {
                let lists = self.places.get_mut(arena.lane());
                let head = &mut lists.by_count[kind as usize][places];
                Self::unlink(head, arena, kind as usize);
                if head.is_none() {
                    lists.nonempty[kind as usize] &= !(1 << places);
                }
            }
        }
    }

    fn pop_empty(&mut self) -> Option<ArenaPtr> {
        let arena = self.empty?;
        Self::unlink(&mut self.empty, arena, Kind::Single as usize);
        Some(arena)
    }

    fn push(head: &mut Option<ArenaPtr>, arena: ArenaPtr, list: usize) {
        arena.set_prev(list, None);
        arena.set_next(list, *head);
        if let Some(old) = *head {
            old.set_prev(list, Some(arena));
        }
        *head = Some(arena);
    }

    fn unlink(head: &mut Option<ArenaPtr>, arena: ArenaPtr, list: usize) {
        let links = arena.links(list);
        match links.prev {
            Some(prev) => prev.set_next(list, links.next),
            None => *head = links.next,
        }
        if let Some(next) = links.next {
            next.set_prev(list, links.prev);
        }
    }

    fn along(head: Option<ArenaPtr>, list: usize) -> impl Iterator<Item = ArenaPtr> {
        core::iter::successors(head, move |arena| arena.links(list).next)
    }

    /// Asserts invariants 1 to 5.
    pub(crate) fn check(&self) {
        for kind in Kind::ALL {
            let mut listed = 0;
            for lane in self.places.lanes() {
                let lists = self.places.get(lane);
                for (places, head) in lists.by_count[kind as usize].iter().enumerate() {
                    let bit = lists.nonempty[kind as usize] >> places & 1 == 1;
                    assert_eq!(head.is_some(), bit, "arenas invariant 2");
                    for arena in Self::along(*head, kind as usize) {
                        assert_eq!(arena.lane(), lane, "arenas invariant 1: lane");
                        assert_eq!(arena.free_places(kind), places, "arenas invariant 1: place");
                        assert!(places > 0 && !arena.is_empty(), "arenas invariant 1");
                        listed += 1;
                    }
                }
            }
            let in_use = |arena: &ArenaPtr| !arena.is_empty() && arena.free_places(kind) > 0;
            assert_eq!(listed, self.iter().filter(in_use).count(), "arenas invariant 1: complete");
        }
        let empty = Self::along(self.empty, Kind::Single as usize);
        let is_empty = |arena: &ArenaPtr| arena.is_empty();
        let empty_arenas = self.iter().filter(is_empty).count();
        let listed = empty.inspect(|arena| assert!(arena.is_empty(), "arenas invariant 3")).count();
        assert_eq!(listed, empty_arenas, "arenas invariant 3: complete");
        assert_eq!(self.iter().count(), self.count, "arenas invariant 4");
        let resident: u32 = self.iter().map(|arena| arena.resident_mask().count_ones()).sum();
        assert_eq!(resident as usize, self.resident_free_units, "arenas invariant 5");
    }
}
