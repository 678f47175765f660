//! Owns [`Magazine`]: a few free blocks of one thread, which it takes and puts without a lock. Leaves to its user where the blocks
//! come from, and when a magazine changes its owner.
//!
//! ```text
//!  owner    push ---> +---+---+---+---+ - - - +        count, list        everybody else: blocks are
//!           pop <---- | a | b | c |   |       | ----------------------->  counted and listed, not used
//!                     +---+---+---+---+ - - - +
//! ```
//!
//! A forked child has no owner but finds the magazine: with each change of the owner it sees all that came before it. So what
//! is in the magazine is free, and the child can become the owner.

use core::fmt;
use core::ptr::{self, NonNull};

use crate::sync::{
    AtomicPtr, AtomicU32, Ordering, Site, array_in_face, const_in_real, interrupt_fence, ordering,
};

/// The most blocks in a [`Magazine`]: with the count they are two lines of a cache of 64 bytes.
pub const MAGAZINE_BLOCKS: usize = 15;

/// Up to [`MAGAZINE_BLOCKS`] free blocks of one owner, last in, first out.
///
/// Taking and putting a block is a load and two stores of the owner's own memory.
#[repr(C, align(128))]
pub struct Magazine {
    /// Written by the owner. Invariant 1: blocks 0 to `len` are free ones.
    len: AtomicU32,
    room: u32,
    blocks: [AtomicPtr<u8>; MAGAZINE_BLOCKS],
}

impl Magazine {
    const_in_real! {
        /// An empty magazine for `room` blocks, [`MAGAZINE_BLOCKS`] at most; with 0 it takes none.
        #[must_use]
        pub const fn new(room: usize) -> Self {
            let room = if room > MAGAZINE_BLOCKS { MAGAZINE_BLOCKS } else { room };
            Self {
                len: AtomicU32::new(0),
                room: room as u32,
                blocks: array_in_face!(AtomicPtr::new(ptr::null_mut()); MAGAZINE_BLOCKS),
            }
        }
    }

    /// The most blocks that it takes.
    #[must_use]
    pub const fn room(&self) -> usize {
        self.room as usize
    }

    /// How many blocks are in it; for another thread than the owner how many were a moment ago.
    #[must_use]
    pub fn len(&self) -> usize {
        // Acquire: pairs with the Release of `push`; see `loom_magazine`.
        self.len.load(ordering(Site::MagazineList, Ordering::Acquire)) as usize
    }

    /// Whether no block is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The blocks that are in it, the first to come first; for another thread than the owner those of a moment ago, of which some
    /// may have come and gone.
    pub fn blocks(&self) -> impl Iterator<Item = NonNull<u8>> {
        let blocks = &self.blocks[..self.len()];
        blocks.iter().filter_map(|block| NonNull::new(block.load(Ordering::Relaxed)))
    }

    /// Takes the block that came last; `None` if there is none.
    ///
    /// # Safety
    ///
    /// 1. The calling thread is the owner: nobody else calls this, [`push`](Self::push) or [`drain`](Self::drain) until it has
    ///    seen all that the caller did.
    #[inline(always)]
    pub unsafe fn pop(&self) -> Option<NonNull<u8>> {
        let last = self.len.load(Ordering::Relaxed).checked_sub(1)?;
        // SAFETY: the length is at most `MAGAZINE_BLOCKS`: `push` sees to it, by 1 without others.
        let place = unsafe { self.blocks.get_unchecked(last as usize) };
        let block = place.load(Ordering::Relaxed);
        self.len.store(last, Ordering::Relaxed);
        // A forked child that sees the block in use sees that it has gone from here; see `loom_magazine`.
        interrupt_fence(Site::MagazinePop);
        // SAFETY: `push` put it there (1), from a `NonNull`.
        Some(unsafe { NonNull::new_unchecked(block) })
    }

    /// Puts `block` in; `false` if there is no room.
    ///
    /// # Safety
    ///
    /// 1. The calling thread is the owner; see [`pop`](Self::pop).
    #[inline(always)]
    pub unsafe fn push(&self, block: NonNull<u8>) -> bool {
        let len = self.len.load(Ordering::Relaxed);
        if len >= self.room {
            return false;
        }
        // SAFETY: `new` limits `room`.
        let place = unsafe { self.blocks.get_unchecked(len as usize) };
        place.store(block.as_ptr(), Ordering::Relaxed);
        // Release: pairs with the Acquire of `len`; see `loom_magazine`. A plain store on x86.
        self.len.store(len + 1, ordering(Site::MagazinePush, Ordering::Release));
        true
    }

    /// Puts as many of `blocks` in as there is room for, such that the first of them will be taken first; the magazine is empty.
    ///
    /// # Safety
    ///
    /// 1. The calling thread is the owner; see [`pop`](Self::pop).
    pub unsafe fn fill(&self, blocks: &[NonNull<u8>]) {
        let blocks = &blocks[..blocks.len().min(self.room())];
        for (place, block) in self.blocks.iter().zip(blocks.iter().rev()) {
            place.store(block.as_ptr(), Ordering::Relaxed);
        }
        // Release: as in `push`.
        self.len.store(blocks.len() as u32, ordering(Site::MagazinePush, Ordering::Release));
    }

    /// Takes the `count` blocks that came first, all if there are fewer, and hands each to `each`, which does not use this magazine.
    ///
    /// # Safety
    ///
    /// 1. The calling thread is the owner, or has seen all that the last one did; see [`pop`](Self::pop).
    pub unsafe fn drain(&self, count: usize, mut each: impl FnMut(NonNull<u8>)) {
        let len = self.len();
        let count = count.min(len);
        self.blocks[..count]
            .iter()
            .filter_map(|block| NonNull::new(block.load(Ordering::Relaxed)))
            .for_each(&mut each);
        let (places, kept) = (&self.blocks[..len - count], &self.blocks[count..len]);
        for (place, block) in places.iter().zip(kept) {
            place.store(block.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        self.len.store((len - count) as u32, Ordering::Relaxed);
    }
}

impl fmt::Debug for Magazine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (len, room) = (self.len(), self.room);
        f.debug_struct("Magazine").field("len", &len).field("room", &room).finish_non_exhaustive()
    }
}
