//! Owns the lists of the pools that can give a block, one for each class and lane. Leaves a pool itself to `pool.rs`.

use core::ptr::NonNull;

use crate::lane::{Lane, PerLane};
use crate::pool::{Pool, PoolPtr};
use crate::size_class::{ROWS, SizeClass};

/// Stands for "no pool": its list stays empty, so that every pop takes the cold path.
static NO_POOL: NoPool = NoPool(Pool::none());

struct NoPool(Pool);

// SAFETY: nobody writes the record: a pop writes only after it has found a block.
unsafe impl Sync for NoPool {}

impl NoPool {
    const fn as_ptr(&'static self) -> PoolPtr {
        let record = core::ptr::from_ref(&self.0).cast_mut();
        // SAFETY: a reference is not null.
        let record = unsafe { NonNull::new_unchecked(record) };
        // SAFETY: 1: of no arena: only the list and the key are read, which lead nowhere; 2: nobody writes it.
        unsafe { PoolPtr::new(record) }
    }
}

/// For each class and lane, the list of the pools that can give a block, with the first pool at hand for the hot path.
///
/// Invariant 1: list c of a lane holds exactly the lane's open pools of class c with a freed or an idle block, and they have the
/// allocator's key. Only its first may have become full since, or have no live block. Other full pools are in no list,
/// other empty ones back in their arenas.
#[repr(transparent)]
pub(crate) struct UsedPools(
    /// The first pool of each row, `NO_POOL` in an empty one.
    PerLane<[PoolPtr; ROWS]>,
);

/// No pools.
const NONE: [PoolPtr; ROWS] = [NO_POOL.as_ptr(); ROWS];

impl UsedPools {
    pub(crate) const fn new() -> Self {
        Self(PerLane::new(NONE))
    }

    /// The first pool of the row of a class byte in the first lane, or one that never has a block.
    ///
    /// # Safety
    ///
    /// 1. `row` is a class byte, or 0.
    #[inline(always)]
    pub(crate) unsafe fn head(&self, row: u8) -> PoolPtr {
        // SAFETY: 1: class bytes are at most `SizeClass::COUNT`.
        unsafe { *self.0.first().get_unchecked(usize::from(row)) }
    }

    /// As [`head`](Self::head), without a reference to the whole.
    ///
    /// # Safety
    ///
    /// 1. `this` is a value of whose first lane nobody writes this row meanwhile.
    /// 2. `row` is a class byte, or 0.
    #[inline(always)]
    pub(crate) unsafe fn head_at(this: *const Self, row: u32) -> PoolPtr {
        // The type is transparent.
        // SAFETY: 1: by 1.
        let first = unsafe { PerLane::first_at(this.cast::<PerLane<[PoolPtr; ROWS]>>()) };
        // SAFETY: 2: class bytes are at most `SizeClass::COUNT`.
        let head = unsafe { first.cast::<PoolPtr>().add(row as usize) };
        // SAFETY: 1: nobody writes it.
        unsafe { *head }
    }

    /// The lanes that have lists.
    pub(crate) fn lanes(&self) -> impl Iterator<Item = Lane> + use<> {
        self.0.lanes()
    }

    /// Begins the lists of `lane`; `false` without memory.
    pub(crate) fn open(
        &mut self,
        lane: Lane,
        place: impl FnOnce(usize) -> Option<NonNull<u8>>,
    ) -> bool {
        self.0.open(lane, || NONE, place)
    }

    /// Ends the lists of `lane`, which are empty. Full pools of the lane are of the first one from now on.
    pub(crate) fn close(&mut self, lane: Lane) {
        self.0.close(lane);
    }

    /// The first pool of a list.
    #[inline]
    pub(crate) fn first(&self, class: SizeClass, lane: Lane) -> Option<PoolPtr> {
        let head = self.0.get(lane)[usize::from(class.byte())];
        (head != NO_POOL.as_ptr()).then_some(head)
    }

    /// Puts `pool`, which is in no list, behind the first pool of its lane, which serves until it has no block left. A full pool
    /// whose blocks come and go one at a time thus does not become the first pool each time.
    pub(crate) fn insert(&mut self, class: SizeClass, mut pool: PoolPtr, key: u32) {
        pool.set_key(key);
        let lane = self.0.or_first(pool.lane());
        pool.set_lane(lane);
        match self.first(class, lane) {
            None => {
                self.0.get_mut(lane)[usize::from(class.byte())] = pool;
                pool.get_mut().live += 1;
            }
            Some(mut first) => {
                let second = first.get().next;
                pool.get_mut().prev = Some(first);
                pool.get_mut().next = second;
                first.get_mut().next = Some(pool);
                if let Some(mut second) = second {
                    second.get_mut().prev = Some(pool);
                }
            }
        }
    }

    /// Takes `pool` out of its list.
    pub(crate) fn unlink(&mut self, class: SizeClass, mut pool: PoolPtr) {
        let (prev, next) = (pool.get().prev, pool.get().next);
        match prev {
            Some(mut prev) => prev.get_mut().next = next,
            None => {
                let first = next.unwrap_or(NO_POOL.as_ptr());
                self.0.get_mut(pool.lane())[usize::from(class.byte())] = first;
                pool.get_mut().live -= 1;
                if let Some(mut next) = next {
                    next.get_mut().live += 1;
                }
            }
        }
        if let Some(mut next) = next {
            next.get_mut().prev = prev;
        }
        let record = pool.get_mut();
        (record.prev, record.next) = (None, None);
        pool.set_key(0);
    }

    /// The number of pools in the lists of `class`; asserts that each belongs there.
    pub(crate) fn check(&self, class: SizeClass, key: u32) -> usize {
        self.lanes().map(|lane| self.check_lane(class, lane, key)).sum()
    }

    fn check_lane(&self, class: SizeClass, lane: Lane, key: u32) -> usize {
        let pools = core::iter::successors(self.first(class, lane), |pool| pool.get().next);
        let belongs = |pool: &PoolPtr| {
            assert_eq!(pool.class(), Some(class), "used pools invariant 1: class");
            assert_eq!(pool.lane(), lane, "used pools invariant 1: lane");
            assert!(pool.has_key(key), "used pools invariant 1: key");
            let next = pool.get().next;
            assert!(next.is_none_or(|next| next.get().prev == Some(*pool)), "list links");
        };
        pools.inspect(belongs).count()
    }
}
