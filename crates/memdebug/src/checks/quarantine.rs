//! Owns freed blocks until they are old: first in, first out, bounded in bytes and blocks, and verified when they leave.
//!
//! A held block is all DEADBYTE. A byte that differs when it leaves, or at exit, was written by somebody who no longer
//! owned it. Small blocks are spread over up to eight rings by address, so that threads seldom meet on a lock; blocks that
//! would push too many others out of one share a ring of their own, with half of the bytes.
//!
//! A ring whose lock is busy is passed over for the next one. A fork holds the rings of hooks that are verified at exit; a child may
//! find a ring of others locked for ever: it uses the rest. Leaves giving a block back to its allocator to `checked.rs`.

use core::ptr::NonNull;

use std::time::{Duration, Instant};

use pymem_sync::{HeldOverFork, Lock, LockGuard};

use crate::block::{self, Extra, HEADER_BYTES, base_of, overhead};
use crate::options::QuarantineBounds;
use crate::os::mapping::{MappedSlice, Zeroed};
use crate::pattern::{DEADBYTE, INLINE_BYTES, first_other, is_all};
use crate::report::violation::ViolationKind;

/// Rings of small blocks, at most.
const SMALL_RINGS: usize = 8;
/// Blocks that a ring should have room for at least, before there is one more ring.
const RING_BLOCKS: usize = 64;
/// A block above this part of a small ring's bytes goes to the large ring.
const SMALL_PART: usize = 16;

/// A freed block.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Held {
    /// Address of the data.
    pub(crate) p: usize,
    pub(crate) size: usize,
    /// Bytes at the front of the data that were not filled.
    pub(crate) unfilled: usize,
    /// `Site::to_bits` of where it was allocated.
    pub(crate) allocated: u32,
    /// And freed.
    pub(crate) freed: u32,
}

// SAFETY: 1: integers.
unsafe impl Zeroed for Held {}

/// Checks that nobody wrote to a freed block.
#[inline]
pub(crate) fn verify(held: &Held, extra: Extra) -> Option<ViolationKind> {
    let data = core::ptr::with_exposed_provenance::<u8>(held.p);
    let base = data.wrapping_sub(HEADER_BYTES);
    let bytes = held.size + overhead(extra);
    block::unheld(base, held.size, extra);
    // SAFETY: 1: a block that its allocator has not got back yet, whose address `Held` exposed; 2: tested, and a block
    // has a header.
    if held.unfilled == 0 && bytes <= INLINE_BYTES && unsafe { is_all(base, DEADBYTE, bytes) } {
        return None;
    }
    verify_in_full(held, base, bytes)
}

/// [`verify`] of a block that is large, or not all dead. It is `bytes` long from `base` on.
#[inline(never)]
fn verify_in_full(held: &Held, base: *const u8, bytes: usize) -> Option<ViolationKind> {
    // SAFETY: a block that its allocator has not got back yet, whose address `Held` exposed.
    let block = unsafe { core::slice::from_raw_parts(base, bytes) };
    if held.unfilled == 0 && first_other(block, DEADBYTE).is_none() {
        return None;
    }
    let (header, data) = block.split_at(HEADER_BYTES);
    let rest = &data[held.unfilled..];
    let (offset, found) = match (first_other(header, DEADBYTE), first_other(rest, DEADBYTE)) {
        (Some(at), _) => (at as isize - HEADER_BYTES as isize, header[at]),
        (None, Some(at)) => ((at + held.unfilled) as isize, rest[at]),
        (None, None) => return None,
    };
    let changed = header.iter().chain(rest).filter(|&&b| b != DEADBYTE).count();
    Some(ViolationKind::UseAfterFree { offset, found, changed })
}

#[derive(Debug)]
struct Ring {
    blocks: Option<MappedSlice<Held>>,
    first: usize,
    len: usize,
    bytes: usize,
}

/// Room of one ring.
#[derive(Clone, Copy, Debug)]
struct Room {
    bytes: usize,
    blocks: usize,
}

impl Ring {
    const fn new() -> Self {
        Self { blocks: None, first: 0, len: 0, bytes: 0 }
    }

    /// Takes `held` in if there is room, after the oldest block left if there was none.
    #[inline]
    fn offer(&mut self, held: &Held, footprint: usize, room: Room, extra: Extra) -> Offer {
        let (first, len) = (self.first, self.len);
        if len == room.blocks {
            // A ring that is full takes the place of the block that leaves it.
            let place = self.blocks.as_deref_mut().and_then(|blocks| blocks.get_mut(first));
            if let Some(place) = place {
                let bytes = self.bytes - (place.size + overhead(extra)) + footprint;
                if bytes <= room.bytes {
                    let oldest = core::mem::replace(place, *held);
                    self.first = if first + 1 == len { 0 } else { first + 1 };
                    self.bytes = bytes;
                    return Offer::Held(Some(oldest));
                }
            }
        }
        self.offer_unsure(held, footprint, room, extra)
    }

    /// [`offer`](Self::offer) to a ring that is not full of blocks.
    #[inline(never)]
    fn offer_unsure(&mut self, held: &Held, footprint: usize, room: Room, extra: Extra) -> Offer {
        if self.blocks.is_none() {
            self.blocks = MappedSlice::new(room.blocks);
        }
        let fits = |ring: &Self| ring.len < room.blocks && ring.bytes + footprint <= room.bytes;
        let evicted = if fits(self) { None } else { self.pop(extra) };
        let place = self.place(self.len);
        // Without memory for the ring nothing is held.
        let fits = fits(self);
        match (self.blocks.as_deref_mut(), evicted) {
            (Some(blocks), evicted) if fits => {
                blocks[place] = *held;
                self.len += 1;
                self.bytes += footprint;
                Offer::Held(evicted)
            }
            (_, Some(oldest)) => Offer::Again(oldest),
            (_, None) => Offer::Refused,
        }
    }

    /// Index of the block that is `index` younger than the oldest.
    fn place(&self, index: usize) -> usize {
        let len = self.blocks.as_deref().map_or(0, <[Held]>::len);
        let place = self.first + index;
        if place < len { place } else { place - len }
    }

    fn pop(&mut self, extra: Extra) -> Option<Held> {
        let held = self.get(0)?;
        self.first = self.place(1);
        self.len -= 1;
        self.bytes -= held.size + overhead(extra);
        Some(held)
    }

    /// The block that is `index` younger than the oldest.
    fn get(&self, index: usize) -> Option<Held> {
        let blocks = self.blocks.as_deref()?;
        (index < self.len).then(|| blocks[self.place(index)])
    }

    fn iter(&self) -> impl Iterator<Item = Held> {
        (0..self.len).filter_map(|index| self.get(index))
    }
}

/// What became of a block that was offered.
pub(crate) enum Offer {
    /// It is held, and this older block left for it.
    Held(Option<Held>),
    /// This older block left, and there is still no room: offer again.
    Again(Held),
    /// It cannot be held: it is too large, or every lock is busy.
    Refused,
}

/// The freed blocks of one `DebugHooks`.
#[derive(Debug)]
pub(crate) struct Quarantine {
    small: [Lock<Ring>; SMALL_RINGS],
    large: Lock<Ring>,
    small_rings: usize,
    small_room: Room,
    large_room: Room,
    /// What blocks have after their guards.
    pub(crate) extra: Extra,
}

impl Quarantine {
    pub(crate) const fn new(bounds: QuarantineBounds, extra: Extra) -> Self {
        let wanted = bounds.blocks / 2 / RING_BLOCKS;
        let small_rings = if wanted == 0 {
            1
        } else if wanted > SMALL_RINGS {
            SMALL_RINGS
        } else {
            wanted
        };
        let part = bounds.blocks / 8;
        let large_blocks = if part == 0 { 1 } else { part };
        let left = bounds.blocks - large_blocks;
        let small_blocks = if left < small_rings { 1 } else { left / small_rings };
        Self {
            small: [const { Lock::new(Ring::new()) }; SMALL_RINGS],
            large: Lock::new(Ring::new()),
            small_rings,
            small_room: Room { bytes: bounds.bytes / 2 / small_rings, blocks: small_blocks },
            large_room: Room { bytes: bounds.bytes / 2, blocks: large_blocks },
            extra,
        }
    }

    /// Offers a freed block, filled dead.
    #[inline]
    pub(crate) fn offer(&self, held: &Held) -> Offer {
        let footprint = held.size + overhead(self.extra);
        let extra = self.extra;
        let offer =
            |mut ring: LockGuard<'_, Ring>, room: Room| ring.offer(held, footprint, room, extra);
        if footprint > self.large_room.bytes {
            return Offer::Refused;
        }
        if footprint <= self.small_room.bytes / SMALL_PART {
            let spread = (held.p as u64 >> 4).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
            let first = ((spread * self.small_rings as u64) >> 32) as usize;
            let rings = &self.small[..self.small_rings];
            for ring in rings[first..].iter().chain(&rings[..first]) {
                if let Some(ring) = ring.try_lock() {
                    return offer(ring, self.small_room);
                }
            }
        }
        match self.large.try_lock() {
            Some(ring) => offer(ring, self.large_room),
            None => Offer::Refused,
        }
    }

    fn rings(&self) -> impl Iterator<Item = &Lock<Ring>> {
        self.small.iter().chain([&self.large])
    }

    /// How many rings are locked.
    #[cfg(test)]
    pub(crate) fn locked(&self) -> usize {
        self.rings().filter(|ring| ring.raw().is_locked()).count()
    }

    /// Takes any block out.
    pub(crate) fn pop(&self) -> Option<Held> {
        self.rings().find_map(|ring| ring.try_lock()?.pop(self.extra))
    }

    /// The held block at `p`: for reports.
    pub(crate) fn find(&self, p: usize) -> Option<Held> {
        self.rings().find_map(|ring| ring.try_lock()?.iter().find(|held| held.p == p))
    }

    /// Bytes and blocks held now.
    pub(crate) fn held(&self) -> (usize, usize) {
        self.rings()
            .filter_map(Lock::try_lock)
            .fold((0, 0), |(bytes, blocks), ring| (bytes + ring.bytes, blocks + ring.len))
    }

    /// Verifies every held block, and leaves it held; calls `tell` with each that was written to, and gives how many.
    pub(crate) fn verify_all(&self, tell: impl Fn(&Held, ViolationKind)) -> usize {
        let mut found = 0;
        for ring in self.rings() {
            // One at a time, so that the handler runs without the lock.
            let mut from = 0;
            while let Some((next, held, kind)) = self.first_damaged(ring, from) {
                from = next;
                found += 1;
                tell(&held, kind);
            }
        }
        found
    }

    /// The first damaged block of `ring` from number `from` on, and the number after it.
    fn first_damaged(
        &self,
        ring: &Lock<Ring>,
        from: usize,
    ) -> Option<(usize, Held, ViolationKind)> {
        // The lock is what keeps the block held while it is read.
        let ring = lock_soon(ring)?;
        let mut held = (from..).map_while(|index| Some((index + 1, ring.get(index)?)));
        held.find_map(|(next, held)| Some((next, held, verify(&held, self.extra)?)))
    }
}

impl HeldOverFork for Quarantine {
    fn hold(&self) {
        self.small.hold();
        self.large.hold();
    }

    unsafe fn release(&self) {
        // SAFETY: (1) `hold` took it, on behalf of this thread (1).
        unsafe { self.large.release() };
        // SAFETY: (1) `hold` took them, on behalf of this thread (1).
        unsafe { self.small.release() };
    }
}

/// The lock once its holder is through with it; `None` if that takes longer than anything that is done under it, as after a
/// signal that came in the middle, or a fork of hooks that are not verified at exit.
fn lock_soon(ring: &Lock<Ring>) -> Option<LockGuard<'_, Ring>> {
    /// In time, since a turn may be that of a busy neighbour, and take as long as the neighbour's.
    const PATIENCE: Duration = Duration::from_millis(100);
    let start = Instant::now();
    loop {
        let ring = ring.try_lock();
        if ring.is_some() || start.elapsed() > PATIENCE {
            return ring;
        }
        std::thread::yield_now();
    }
}

/// The pointer of a held block.
pub(crate) fn pointer(held: &Held) -> Option<NonNull<u8>> {
    NonNull::new(core::ptr::with_exposed_provenance_mut(held.p))
}

/// The underlying block of a held block.
pub(crate) fn underlying(held: &Held) -> Option<NonNull<u8>> {
    NonNull::new(base_of(pointer(held)?))
}
