//! Owns the slot list: where each participant says what it has seen. Chunks are added and never move, so a scan needs no
//! lock and a registration stops nobody.

use core::{error, fmt, iter, ptr};
use std::alloc::{Layout, alloc};

use crossbeam_utils::CachePadded;

use crate::sync::{
    AtomicPtr, AtomicU64, CHUNK_SLOTS, Ordering, Site, Witness, array_in_face, const_in_real,
    ordering,
};

/// No participant has this id.
const NOBODY: u64 = 0;

/// What one participant tells the scans.
#[derive(Debug)]
pub(super) struct Slot {
    /// 0 while offline, else the last write sequence that the participant has seen.
    pub(super) seq: AtomicU64,
    /// The participant's id; [`NOBODY`] while the slot is free.
    owner: AtomicU64,
}

impl Slot {
    const_in_real! {
        const fn new(owner: u64) -> Self {
            Self { seq: AtomicU64::new(0), owner: AtomicU64::new(owner) }
        }
    }

    /// Takes the slot if it is free.
    fn try_own(&self, id: u64) -> bool {
        // Acquire: pairs with the Release of `disown`: the slot is seen offline. See `loom_qsbr_slot_reuse`.
        let acquire = ordering(Site::QsbrOwn, Ordering::Acquire);
        self.owner.load(Ordering::Relaxed) == NOBODY
            && self.owner.compare_exchange(NOBODY, id, acquire, Ordering::Relaxed).is_ok()
    }

    /// Whether `id` still owns the slot: a fork may have taken it away.
    pub(super) fn is_owned_by(&self, id: u64) -> bool {
        self.owner.load(Ordering::Relaxed) == id
    }

    /// Frees the slot, which must be offline.
    pub(super) fn disown(&self) {
        // Release: pairs with the Acquire of `try_own`; see `loom_qsbr_slot_reuse`.
        self.owner.store(NOBODY, ordering(Site::QsbrDisown, Ordering::Release));
    }
}

/// A few slots and the way to the next few.
struct Chunk {
    // Padded: each slot has a writer of its own.
    slots: [CachePadded<Slot>; CHUNK_SLOTS],
    /// Null at the end; written once.
    next: AtomicPtr<Chunk>,
    /// The chunk is written before it is linked.
    written: Witness,
}

impl Chunk {
    const_in_real! {
        const fn new() -> Self {
            Self {
                slots: array_in_face!(CachePadded::new(Slot::new(NOBODY)); CHUNK_SLOTS),
                next: AtomicPtr::new(ptr::null_mut()),
                written: Witness::new(),
            }
        }
    }

    /// The next chunk.
    fn next(&self) -> Option<&Self> {
        // Acquire: pairs with the Release of `next_or_grow`; see `loom_qsbr_register`.
        let next = self.next.load(ordering(Site::QsbrFollow, Ordering::Acquire));
        // SAFETY: a non-null link is a chunk that lives until the list is dropped, which needs `&mut`.
        unsafe { next.as_ref() }
    }

    /// The next chunk, added to the list if there is none.
    fn next_or_grow(&self) -> Result<&Self, RegisterError> {
        if let Some(next) = self.next() {
            return Ok(next);
        }
        let new = Box::into_raw(try_box(Self::new()).ok_or(RegisterError { _private: () })?);
        // Release: pairs with the Acquire of `next`; a scan that follows the link reads written slots.
        let release = ordering(Site::QsbrGrow, Ordering::Release);
        // Acquire on failure: pairs with the Release of whoever linked a chunk first.
        let acquire = ordering(Site::QsbrGrowLost, Ordering::Acquire);
        match self.next.compare_exchange(ptr::null_mut(), new, release, acquire) {
            // SAFETY: linked chunks live until the list is dropped.
            Ok(_) => Ok(unsafe { &*new }),
            Err(other) => {
                // SAFETY: from `into_raw` above, and never linked.
                drop(unsafe { Box::from_raw(new) });
                // SAFETY: linked chunks live until the list is dropped.
                Ok(unsafe { &*other })
            }
        }
    }
}

/// Every slot there is; grows, never shrinks, never moves.
pub(super) struct Slots {
    first: Chunk,
}

impl Slots {
    const_in_real! {
        pub(super) const fn new() -> Self {
            Self { first: Chunk::new() }
        }
    }

    /// A slot for the participant `id`: a free one, else one of a new chunk.
    pub(super) fn own(&self, id: u64) -> Result<&Slot, RegisterError> {
        let mut chunk = &self.first;
        loop {
            chunk.written.see();
            if let Some(slot) = chunk.slots.iter().find(|slot| slot.try_own(id)) {
                return Ok(slot);
            }
            chunk = chunk.next_or_grow()?;
        }
    }

    /// Every slot, owned or free, oldest chunk first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Slot> {
        iter::successors(Some(&self.first), |chunk| chunk.next())
            .inspect(|chunk| chunk.written.see())
            .flat_map(|chunk| chunk.slots.iter().map(|slot| &**slot))
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        let mut next = self.first.next.load(Ordering::Relaxed);
        while !next.is_null() {
            // SAFETY: every link comes from `into_raw` in `next_or_grow`, and `&mut self` says that nobody else reads it.
            let chunk = unsafe { Box::from_raw(next) };
            next = chunk.next.load(Ordering::Relaxed);
        }
    }
}

/// There is no memory for one more participant.
#[derive(Debug)]
pub struct RegisterError {
    _private: (),
}

impl fmt::Display for RegisterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "no memory for {CHUNK_SLOTS} more QSBR slots of {} bytes; free memory or drop a participant, and register again",
            size_of::<CachePadded<Slot>>()
        )
    }
}

impl error::Error for RegisterError {}

/// `value` on the heap; `None` if there is no memory, where `Box::new` would end the process.
pub(super) fn try_box<T>(value: T) -> Option<Box<T>> {
    const { assert!(size_of::<T>() != 0, "the layout of a box that is allocated") };
    // SAFETY: the layout's size is not zero.
    let place = unsafe { alloc(Layout::new::<T>()) }.cast::<T>();
    if place.is_null() {
        return None;
    }
    // SAFETY: fresh memory of the layout of `T`.
    unsafe { place.write(value) };
    // SAFETY: from the global allocator with the layout of `T`, and written.
    Some(unsafe { Box::from_raw(place) })
}
