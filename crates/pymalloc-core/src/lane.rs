//! Owns lanes: threads that meet at the lock too often take blocks from pools, and pools from arenas, of their own. Leaves to
//! `exchange.rs` which thread is in which lane.
//!
//! All threads begin in the first lane. Blocks go back to the pool that they came from, whichever lane frees them.

use core::ptr::NonNull;

/// Number of a lane.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Lane(
    /// Invariant 1: less than `LANES`.
    u8,
);

/// Lanes of an allocator at most: as many as half a byte can number.
const LANES: usize = 16;

/// Binary logarithm of the number of lanes.
pub(crate) const LANE_BITS: u32 = LANES.trailing_zeros();

impl Lane {
    /// That of all threads that do not meet others.
    pub(crate) const FIRST: Self = Self(0);

    /// All but the first.
    pub(crate) fn others() -> impl Iterator<Item = Self> {
        (1..LANES as u8).map(Self)
    }

    /// The number.
    pub(crate) const fn number(self) -> u8 {
        self.0
    }

    /// The lane of this number.
    pub(crate) const fn of(number: u8) -> Self {
        Self(number % LANES as u8)
    }
}

/// A value for each lane. Most programs have one lane alone, so that the others are in a table.
#[repr(C)]
pub(crate) struct PerLane<T> {
    first: T,
    /// Invariant 2: none, or values that belong to this one alone.
    others: Option<NonNull<[Apart<T>; LANES - 1]>>,
    /// A bit for each lane in use; invariant 3: no bit but that of the first lane while there is no table.
    used: u16,
}

/// A value that shares no line with that of another lane.
#[repr(align(128))]
struct Apart<T>(T);

impl<T> PerLane<T> {
    /// The first lane in use, with `first`.
    pub(crate) const fn new(first: T) -> Self {
        Self { first, others: None, used: 1 }
    }

    /// The value of the first lane.
    #[inline(always)]
    pub(crate) const fn first(&self) -> &T {
        &self.first
    }

    /// Where the value of the first lane is.
    ///
    /// # Safety
    ///
    /// 1. `this` is a value.
    #[inline(always)]
    pub(crate) unsafe fn first_at(this: *const Self) -> *const T {
        // SAFETY: 1: a field of the value.
        unsafe { &raw const (*this).first }
    }

    /// The value of `lane`, or of the first lane where there is no other.
    #[inline]
    pub(crate) fn get(&self, lane: Lane) -> &T {
        match (&self.others, usize::from(lane.0).checked_sub(1)) {
            // SAFETY: invariant 2.
            (Some(others), Some(index)) => unsafe { &others.as_ref()[index].0 },
            _ => &self.first,
        }
    }

    /// As [`get`](Self::get).
    #[inline]
    pub(crate) fn get_mut(&mut self, lane: Lane) -> &mut T {
        match (&mut self.others, usize::from(lane.0).checked_sub(1)) {
            // SAFETY: invariant 2.
            (Some(others), Some(index)) => unsafe { &mut others.as_mut()[index].0 },
            _ => &mut self.first,
        }
    }

    /// The lanes in use.
    pub(crate) fn lanes(&self) -> impl Iterator<Item = Lane> + use<T> {
        let used = self.used;
        (0..LANES as u8).filter(move |lane| used >> lane & 1 == 1).map(Lane)
    }

    /// `lane` if it is in use, else the first.
    pub(crate) fn or_first(&self, lane: Lane) -> Lane {
        if self.used >> lane.0 & 1 == 1 { lane } else { Lane::FIRST }
    }

    /// Puts `lane` in use. The first time, each lane gets `value`, in `place`'s memory; `false` without memory.
    pub(crate) fn open(
        &mut self,
        lane: Lane,
        value: impl Fn() -> T,
        place: impl FnOnce(usize) -> Option<NonNull<u8>>,
    ) -> bool {
        if self.others.is_none() {
            let Some(place) = place(size_of::<[Apart<T>; LANES - 1]>()) else { return false };
            let others = place.cast::<[Apart<T>; LANES - 1]>();
            // SAFETY: pages of nobody else, enough for the values.
            unsafe { others.write(core::array::from_fn(|_| Apart(value()))) };
            self.others = Some(others);
        }
        self.used |= 1 << lane.0;
        true
    }

    /// Puts `lane`, which is not the first, out of use.
    pub(crate) fn close(&mut self, lane: Lane) {
        self.used &= !(1 << lane.0);
    }
}
