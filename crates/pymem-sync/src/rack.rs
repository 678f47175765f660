//! Owns [`Rack`]: magazines of free blocks of one thread, which it takes and puts without a lock. Leaves to its user where the blocks
//! come from, and when a rack changes its owner.
//!
//! ```text
//!  magazines    | top first end limit | top first end limit |        places   | a b c . . . . . | d . . . |
//!                    |                                                              ^ top   ^ end   ^ limit
//!                    +------------------------------------------------------------- + - - - + - - - +
//!  owner        push: places[top] = block, top + 1     pop: top - 1      everybody else: counts and lists
//! ```
//!
//! A forked child has no owner but finds the rack: with each change of the owner it sees all that came before it. So what
//! is in a magazine is free, and the child can become the owner.

use core::fmt;
use core::ptr::{self, NonNull};

use crate::sync::{
    AtomicPtr, AtomicU16, Ordering, Site, array_in_face, const_in_real, interrupt_fence, ordering,
};

/// Blocks that a magazine has room for at first, and after a [`Rack::shrink`].
const ROOM_AT_FIRST: u16 = 16;

/// Stacks of free blocks of one owner: a magazine a row, last in, first out.
///
/// Taking and putting a block is a few loads and stores of the owner's own memory. Zero bytes are a rack whose magazines have no room.
#[repr(C)]
pub struct Rack<const ROWS: usize, const PLACES: usize> {
    magazines: [Magazine; ROWS],
    places: [AtomicPtr<u8>; PLACES],
}

/// Where a row's blocks are among the places. Invariant 1: `first <= top`, and `end` is at most `limit`, which is at most the number of
/// places. Invariant 2: the places from `first` to `top` hold free blocks. All but `top` is the owner's alone.
struct Magazine {
    top: AtomicU16,
    first: AtomicU16,
    end: AtomicU16,
    limit: AtomicU16,
}

impl Magazine {
    const_in_real! {
        const fn new() -> Self {
            Self {
                top: AtomicU16::new(0),
                first: AtomicU16::new(0),
                end: AtomicU16::new(0),
                limit: AtomicU16::new(0),
            }
        }
    }
}

impl<const ROWS: usize, const PLACES: usize> Rack<ROWS, PLACES> {
    const_in_real! {
        /// A rack whose magazines have no room.
        #[must_use]
        pub const fn new() -> Self {
            Self {
                magazines: array_in_face!(Magazine::new(); ROWS),
                places: array_in_face!(AtomicPtr::new(ptr::null_mut()); PLACES),
            }
        }
    }

    /// Gives each magazine its part of the places: room for up to `limit(row)` blocks, or for what is left. All are empty.
    ///
    /// More than 65,535 places are an error of the compiler:
    ///
    /// ```compile_fail,E0080
    /// let rack = pymem_sync::Rack::<1, 65_536>::new();
    /// // SAFETY: (1) the only thread.
    /// unsafe { rack.lay_out(|_row| 10) };
    /// ```
    ///
    /// # Safety
    ///
    /// 1. The calling thread is the owner; see [`pop`](Self::pop).
    pub unsafe fn lay_out(&self, limit: impl Fn(usize) -> usize) {
        const { assert!(PLACES <= u16::MAX as usize, "a place has a number of 16 bits") };
        let mut first = 0_usize;
        for (row, magazine) in self.magazines.iter().enumerate() {
            let last = PLACES.min(first.saturating_add(limit(row)));
            for place in [&magazine.top, &magazine.first] {
                place.store(first as u16, Ordering::Relaxed);
            }
            magazine.limit.store(last as u16, Ordering::Relaxed);
            // SAFETY: 1: the caller's.
            unsafe { self.shrink(row) };
            first = last;
        }
    }

    /// The most blocks that the magazine takes now; 0 where there is no such row.
    #[must_use]
    pub fn room(&self, row: usize) -> usize {
        self.magazines.get(row).map_or(0, |magazine| {
            let [first, end] =
                [&magazine.first, &magazine.end].map(|place| place.load(Ordering::Relaxed));
            usize::from(end.saturating_sub(first))
        })
    }

    /// The places that are in use in a row.
    fn used(&self, row: usize) -> &[AtomicPtr<u8>] {
        let Some(magazine) = self.magazines.get(row) else { return &[] };
        // Acquire: pairs with the Release of `push`; see `loom_rack`.
        let top = magazine.top.load(ordering(Site::MagazineList, Ordering::Acquire));
        let first = magazine.first.load(Ordering::Relaxed);
        self.places.get(usize::from(first)..usize::from(top)).unwrap_or_default()
    }

    /// How many blocks are in a magazine; for another thread than the owner how many were a moment ago.
    #[must_use]
    pub fn len(&self, row: usize) -> usize {
        self.used(row).len()
    }

    /// The blocks that are in a magazine, the first to come first; for another thread than the owner those of a moment ago, of which
    /// some may have come and gone.
    pub fn blocks(&self, row: usize) -> impl Iterator<Item = NonNull<u8>> {
        self.used(row).iter().filter_map(|place| NonNull::new(place.load(Ordering::Relaxed)))
    }

    /// Takes the block that came last; `None` if there is none.
    ///
    /// # Safety
    ///
    /// 1. The calling thread is the owner: nobody else calls an unsafe method until it has seen all that the caller did.
    /// 2. `row` is less than `ROWS`.
    #[inline(always)]
    pub unsafe fn pop(&self, row: usize) -> Option<NonNull<u8>> {
        // SAFETY: 2.
        let magazine = unsafe { self.magazines.get_unchecked(row) };
        let top = magazine.top.load(Ordering::Relaxed);
        if top <= magazine.first.load(Ordering::Relaxed) {
            return None;
        }
        let top = top - 1;
        // SAFETY: invariant 1, of which only the owner's calls write (1).
        let place = unsafe { self.places.get_unchecked(usize::from(top)) };
        let block = place.load(Ordering::Relaxed);
        magazine.top.store(top, Ordering::Relaxed);
        // A forked child that sees the block in use sees that it has gone from here; see `loom_rack`.
        interrupt_fence(Site::MagazinePop);
        // SAFETY: `push` put it there (1), from a `NonNull`.
        Some(unsafe { NonNull::new_unchecked(block) })
    }

    /// Puts `block` in; `false` if there is no room.
    ///
    /// # Safety
    ///
    /// 1. The calling thread is the owner; see [`pop`](Self::pop).
    /// 2. `row` is less than `ROWS`.
    #[inline(always)]
    pub unsafe fn push(&self, row: usize, block: NonNull<u8>) -> bool {
        // SAFETY: 2.
        let magazine = unsafe { self.magazines.get_unchecked(row) };
        let top = magazine.top.load(Ordering::Relaxed);
        if top >= magazine.end.load(Ordering::Relaxed) {
            return false;
        }
        // SAFETY: invariant 1, of which only the owner's calls write (1).
        let place = unsafe { self.places.get_unchecked(usize::from(top)) };
        place.store(block.as_ptr(), Ordering::Relaxed);
        // Release: pairs with the Acquire of `used`; see `loom_rack`. A plain store on x86.
        magazine.top.store(top + 1, ordering(Site::MagazinePush, Ordering::Release));
        true
    }

    /// Begins to fill an empty magazine with up to `count` blocks, such that the first of them will be taken first.
    ///
    /// # Safety
    ///
    /// 1. The calling thread is the owner; see [`pop`](Self::pop). Until [`Filling::finish`] it calls nothing else for this row.
    pub unsafe fn fill(&self, row: usize, count: usize) -> Filling<'_> {
        let count = count.min(self.room(row));
        let magazine = self.magazines.get(row);
        let first = magazine.map_or(0, |magazine| magazine.first.load(Ordering::Relaxed));
        let places = self.places.get(usize::from(first)..).unwrap_or_default();
        let places = places.get(..count).unwrap_or_default();
        Filling { top: magazine.map(|magazine| &magazine.top), first, places, free: places }
    }

    /// Takes all blocks, the oldest of them first. They are gone from here at once.
    ///
    /// # Safety
    ///
    /// 1. The calling thread is the owner, or has seen all that the last one did; see [`pop`](Self::pop). While it asks for blocks it
    ///    puts none into this row.
    pub unsafe fn drain(&self, row: usize) -> impl Iterator<Item = NonNull<u8>> {
        let used = self.used(row);
        if let Some(magazine) = self.magazines.get(row) {
            magazine.top.store(magazine.first.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        used.iter().map(|place| {
            let block = place.load(Ordering::Relaxed);
            // SAFETY: invariant 2; `push` and `Filling::put` stored a `NonNull`, which this thread has seen (1).
            unsafe { NonNull::new_unchecked(block) }
        })
    }

    /// Gives a magazine twice the room, up to its limit.
    ///
    /// # Safety
    ///
    /// 1. The calling thread is the owner; see [`pop`](Self::pop).
    pub unsafe fn grow(&self, row: usize) {
        let Some(magazine) = self.magazines.get(row) else { return };
        let end = magazine.end.load(Ordering::Relaxed);
        let more = end.saturating_add(self.room(row) as u16);
        magazine.end.store(more.min(magazine.limit.load(Ordering::Relaxed)), Ordering::Relaxed);
    }

    /// Gives an empty magazine the room that it had at first.
    ///
    /// # Safety
    ///
    /// 1. The calling thread is the owner; see [`pop`](Self::pop).
    pub unsafe fn shrink(&self, row: usize) {
        let Some(magazine) = self.magazines.get(row) else { return };
        let end = magazine.first.load(Ordering::Relaxed).saturating_add(ROOM_AT_FIRST);
        magazine.end.store(end.min(magazine.limit.load(Ordering::Relaxed)), Ordering::Relaxed);
    }
}

impl<const ROWS: usize, const PLACES: usize> Default for Rack<ROWS, PLACES> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const ROWS: usize, const PLACES: usize> fmt::Debug for Rack<ROWS, PLACES> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries((0..ROWS).map(|row| (self.len(row), self.room(row)))).finish()
    }
}

/// Blocks on their way into an empty magazine.
#[must_use = "the blocks are in the magazine when it is finished"]
pub struct Filling<'a> {
    top: Option<&'a AtomicU16>,
    first: u16,
    places: &'a [AtomicPtr<u8>],
    /// The first of the places, which have no block yet; the others have one.
    free: &'a [AtomicPtr<u8>],
}

impl Filling<'_> {
    /// How many more blocks there is room for.
    #[must_use]
    pub const fn left(&self) -> usize {
        self.free.len()
    }

    /// Puts `block` behind those that are there; without room the block is forgotten.
    #[inline]
    pub fn put(&mut self, block: NonNull<u8>) {
        if let Some((place, free)) = self.free.split_last() {
            place.store(block.as_ptr(), Ordering::Relaxed);
            self.free = free;
        }
    }

    /// Puts blocks behind those that are there, as far as there is room; returns how many. No more are taken from `blocks`.
    #[inline]
    pub fn extend(&mut self, mut blocks: impl Iterator<Item = NonNull<u8>>) -> usize {
        let (room, mut free) = (self.free.len(), self.free);
        while let Some((place, rest)) = free.split_last() {
            let Some(block) = blocks.next() else { break };
            place.store(block.as_ptr(), Ordering::Relaxed);
            free = rest;
        }
        self.free = free;
        room - free.len()
    }

    /// Puts the blocks into the magazine.
    pub fn finish(self) {
        let filled = self.places.get(self.left()..).unwrap_or_default();
        if self.left() > 0 {
            for (place, block) in self.places.iter().zip(filled) {
                place.store(block.load(Ordering::Relaxed), Ordering::Relaxed);
            }
        }
        if let Some(top) = self.top {
            // Release: as in `push`.
            let end = self.first + filled.len() as u16;
            top.store(end, ordering(Site::MagazinePush, Ordering::Release));
        }
    }
}

impl fmt::Debug for Filling<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filling").field("left", &self.left()).finish_non_exhaustive()
    }
}
