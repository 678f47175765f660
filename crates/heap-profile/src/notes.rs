//! Owns `Notes`: four bytes for each block of an allocator's pools, found by the block's address.
//!
//! ```text
//! units, one for each 16 KiB of addresses        the notes of the blocks in it
//! | address of notes | block's bytes | --------> | next spare | note | note | ...
//!
//! note     | site, 28 bits | bytes that the size class has more |     blocks up to 512 bytes
//!          | site          | 0 |  bytes                         |     larger ones, two words
//! ```

use std::fmt;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};

use malloc_api::{LibcMalloc, Malloc, immortal};
use pymem_sync::{Lock, RawLock};

/// Tells which blocks of an allocator lie in pools.
///
/// All blocks in one unit of 16 KiB, at a multiple of that, have the same number of bytes while one of them is live. A request
/// gets the smallest blocks that hold it.
pub trait Pools: Sync {
    /// Bytes of each block in the pool in which the live block at `block` lies; `None` for a block that is in no pool.
    fn block_bytes(&self, block: NonNull<u8>) -> Option<usize>;
}

/// Binary logarithm of the bytes of a unit.
const UNIT_SHIFT: u32 = 14;
const UNIT_BYTES: usize = 1 << UNIT_SHIFT;

/// Binary logarithm of the addresses that notes reach: 64 GiB about the first block.
const REACH_SHIFT: u32 = if usize::BITS >= 64 { 36 } else { 31 };
const UNITS: usize = 1 << (REACH_SHIFT - UNIT_SHIFT);

/// No block is within reach of it.
const NO_BASE: usize = 1 << (usize::BITS - 1);

/// What sizes of blocks are multiples of.
const GRAIN_BYTES: usize = 16;
/// The largest blocks that have notes, in grains.
const GRAINS_MAX: usize = 512;
/// The largest blocks whose notes are one word, in grains.
const NARROW_GRAINS: usize = 32;

/// Bits of a note's first word below the site's.
const SLACK_BITS: u32 = 4;
const _: () = assert!(1 << SLACK_BITS == GRAIN_BYTES);

/// Sites with a number from here on have no room in a note.
pub(crate) const SITES_MAX: u32 = u32::MAX >> SLACK_BITS;

/// Bits of a unit's word below the notes' address: the blocks' grains.
const GRAINS_BITS: u32 = u16::BITS;

/// `ceil(2^32 / grains)`: multiplying by it divides an offset in grains.
static RECIPROCALS: [u64; 2 * GRAINS_MAX] = {
    let mut table = [0; 2 * GRAINS_MAX];
    let mut grains = 1;
    while grains <= GRAINS_MAX {
        table[grains] = (1_u64 << 32).div_ceil(grains as u64);
        grains += 1;
    }
    table
};

/// What stands in a block's note.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    /// The site's number.
    pub(crate) site: u32,
    pub(crate) size: NoteSize,
}

/// The first word of a note, which is all of a narrow one, and stays in one register.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NoteWord(u32);

impl NoteWord {
    /// The site's number.
    #[inline(always)]
    pub(crate) const fn site(self) -> Option<u32> {
        (self.0 >> SLACK_BITS).checked_sub(1)
    }

    /// How much less than the size class holds was asked for.
    #[inline(always)]
    pub(crate) const fn less(self) -> u32 {
        self.0 % (1 << SLACK_BITS)
    }

    /// What a note says that is no more than this word.
    #[inline(always)]
    pub(crate) fn alone(self) -> Option<Note> {
        Some(Note { site: self.site()?, size: NoteSize::BelowClass(self.less()) })
    }
}

/// The bytes of a block, as they were requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoteSize {
    /// This many less than the size class holds.
    BelowClass(u32),
    Bytes(u32),
}

/// Notes beside an allocator's pools: for a block of up to 512 bytes four bytes, for one of up to 8 KiB eight.
///
/// They take no room in the pools, and finding one takes two loads. They are shared by all profilers of one allocator, such as those of
/// the mem and obj domains, and live for ever; memory comes from the C library.
pub struct Notes {
    pools: &'static dyn Pools,
    /// The first address of the first unit; [`NO_BASE`] before the first block.
    base: AtomicUsize,
    /// `UNITS` words.
    units: NonNull<AtomicU64>,
    spare: Lock<Spare>,
}

// SAFETY: the words are atomic, and live for ever.
unsafe impl Send for Notes {}
// SAFETY: as above.
unsafe impl Sync for Notes {}

/// Notes that no unit has.
struct Spare {
    /// By grains, the notes that a unit gave up; their first word leads to the next.
    given_up: [*mut *mut u8; GRAINS_MAX + 1],
    /// Fresh memory, zeroed.
    fresh: *mut u8,
    left: usize,
}

// SAFETY: memory that belongs to the one value.
unsafe impl Send for Spare {}

/// Bytes that are taken from the C library at once.
const FRESH_BYTES: usize = 64 << 10;

/// Bytes of the notes of a unit with blocks of this size, and of the word before them.
const fn notes_bytes(grains: usize) -> usize {
    let blocks = (UNIT_BYTES / GRAIN_BYTES).div_ceil(grains);
    let words = if grains > NARROW_GRAINS { 2 * blocks } else { blocks };
    (size_of::<*mut u8>() + words * size_of::<u32>()).next_multiple_of(size_of::<*mut u8>())
}

impl Spare {
    /// Notes for blocks of this size, all zero; `None` without memory.
    fn take(&mut self, grains: usize) -> Option<NonNull<u8>> {
        let head = NonNull::new(self.given_up[grains]);
        if let Some(notes) = head {
            // SAFETY: the first word of notes that were given up.
            self.given_up[grains] = unsafe { notes.read() }.cast();
            return Some(notes.cast());
        }
        let bytes = notes_bytes(grains);
        if self.left < bytes {
            self.fresh = LibcMalloc.calloc(1, FRESH_BYTES)?.as_ptr();
            self.left = FRESH_BYTES;
        }
        let notes = NonNull::new(self.fresh)?;
        self.fresh = self.fresh.wrapping_add(bytes);
        self.left -= bytes;
        Some(notes)
    }

    /// Takes notes back that no live block has.
    ///
    /// # Safety
    ///
    /// 1. `notes` came from [`take`](Self::take) with this size, and no unit has them.
    unsafe fn give(&mut self, notes: NonNull<u8>, grains: usize) {
        // SAFETY: by 1, this many bytes.
        unsafe { notes.write_bytes(0, notes_bytes(grains)) };
        // SAFETY: by 1; the first word is the link's.
        unsafe { notes.cast::<*mut u8>().write(self.given_up[grains].cast()) };
        self.given_up[grains] = notes.as_ptr().cast();
    }
}

const _: () = assert!(notes_bytes(1) <= FRESH_BYTES);

impl Notes {
    /// Notes for the blocks of `pools`, which live for ever; `None` without memory.
    ///
    /// Takes 32 MiB of addresses, of which what is used becomes resident: eight bytes for each 16 KiB of pools.
    #[must_use]
    pub fn new(pools: &'static dyn Pools) -> Option<&'static Self> {
        let units = LibcMalloc.calloc(UNITS, size_of::<AtomicU64>())?.cast();
        let spare =
            Spare { given_up: [ptr::null_mut(); GRAINS_MAX + 1], fresh: ptr::null_mut(), left: 0 };
        let base = AtomicUsize::new(NO_BASE);
        Some(immortal::leak(Self { pools, base, units, spare: Lock::new(spare) }))
    }

    /// The lock to hold over a fork, after those of the profile.
    #[must_use]
    pub const fn lock(&self) -> &RawLock {
        self.spare.raw()
    }

    /// Notes that `block` of `size` bytes is of the site with this number; `false` if the block can have no note.
    #[inline]
    pub(crate) fn put(&self, block: NonNull<u8>, size: usize, site: u32) -> bool {
        // A unit without notes has blocks of no bytes.
        if size == 0 {
            return false;
        }
        let Some(unit) = self.unit(block) else { return self.begin(block, size, site) };
        let mut word = unit.load(Relaxed);
        // No other blocks hold as little more than the request.
        if (grains_of(word) * GRAIN_BYTES).wrapping_sub(size) >= GRAIN_BYTES {
            match self.renew(unit, block) {
                Some(renewed) => word = renewed,
                None => return false,
            }
        }
        if site >= SITES_MAX {
            return false;
        }
        let (note, bytes) = note_of(word, block);
        let slack = if let Some(bytes) = bytes {
            bytes.store(size as u32, Relaxed);
            0
        } else {
            // Classes hold multiples of 16.
            (size as u32).wrapping_neg() % GRAIN_BYTES as u32
        };
        note.store((site + 1) << SLACK_BITS | slack, Relaxed);
        true
    }

    /// As [`put`](Self::put), of a block of at most 512 bytes and more than none, whose note is in its place, and of a site below
    /// [`SITES_MAX`]; `false`, and nothing is noted, where the note is not in its place.
    #[inline(always)]
    pub(crate) fn put_plainly(&self, block: NonNull<u8>, bytes: u32, site: u32) -> bool {
        debug_assert!(site < SITES_MAX, "a thread remembers no other site");
        let grains = bytes.div_ceil(GRAIN_BYTES as u32);
        let Some(unit) = self.unit(block) else { return false };
        let word = unit.load(Relaxed);
        if grains_of(word) as u32 != grains {
            return false;
        }
        let note = narrow_note(word, block, grains as usize);
        let slack = bytes.wrapping_neg() % GRAIN_BYTES as u32;
        note.store(((site + 1) << SLACK_BITS) + slack, Relaxed);
        true
    }

    /// Takes the note of `block`, if there is one.
    #[inline]
    pub(crate) fn take(&self, block: NonNull<u8>) -> Option<Note> {
        let (note, bytes) = self.words_of(block)?;
        let mut taken = NoteWord(note.load(Relaxed)).alone()?;
        note.store(0, Relaxed);
        if let Some(bytes) = bytes {
            taken.size = NoteSize::Bytes(bytes.load(Relaxed));
        }
        Some(taken)
    }

    /// As [`take`](Self::take), of a note of one word.
    #[inline(always)]
    pub(crate) fn take_narrow(&self, block: NonNull<u8>) -> Option<NoteWord> {
        let word = self.unit(block)?.load(Relaxed);
        let grains = grains_of(word);
        if grains.wrapping_sub(1) >= NARROW_GRAINS {
            return None;
        }
        let note = narrow_note(word, block, grains);
        let taken = NoteWord(note.load(Relaxed));
        taken.site()?;
        note.store(0, Relaxed);
        Some(taken)
    }

    /// The number of the site in the note of `block`, if there is one.
    pub(crate) fn site_of(&self, block: NonNull<u8>) -> Option<u32> {
        let (note, _) = self.words_of(block)?;
        NoteWord(note.load(Relaxed)).site()
    }

    /// The words of the note of `block`, as [`note_of`]; `None` where its unit has no notes.
    #[inline]
    fn words_of(
        &self,
        block: NonNull<u8>,
    ) -> Option<(&'static AtomicU32, Option<&'static AtomicU32>)> {
        // Relaxed: whoever frees a block has it from the thread that noted it, in an order that the program makes.
        let word = self.unit(block)?.load(Relaxed);
        (word != 0).then(|| note_of(word, block))
    }

    /// The word of the unit in which `block` lies; `None` where notes do not reach.
    #[inline(always)]
    fn unit(&self, block: NonNull<u8>) -> Option<&AtomicU64> {
        let base = self.base.load(Relaxed);
        let unit = block.addr().get().wrapping_sub(base) >> UNIT_SHIFT;
        if unit >= UNITS {
            return None;
        }
        // SAFETY: below the number of words.
        let word = unsafe { self.units.add(unit) };
        // SAFETY: zeroed words that live for ever.
        Some(unsafe { word.as_ref() })
    }

    /// Lets the first block of a pool say where the notes' addresses are; `false` where they are elsewhere already.
    #[cold]
    fn begin(&self, block: NonNull<u8>, size: usize, site: u32) -> bool {
        if self.base.load(Relaxed) != NO_BASE || self.pools.block_bytes(block).is_none() {
            return false;
        }
        let half = 1 << (REACH_SHIFT - 1);
        let base = block.addr().get().saturating_sub(half).max(UNIT_BYTES) & !(UNIT_BYTES - 1);
        // Whoever comes second takes the first one's.
        let _ = self.base.compare_exchange(NO_BASE, base, Relaxed, Relaxed);
        self.unit(block).is_some() && self.put(block, size, site)
    }

    /// Gives a unit notes for blocks as they are now; the unit's word, or `None` where the block can have no note.
    #[cold]
    #[inline(never)]
    fn renew(&self, unit: &AtomicU64, block: NonNull<u8>) -> Option<u64> {
        let bytes = self.pools.block_bytes(block)?;
        let grains = bytes / GRAIN_BYTES;
        if bytes % GRAIN_BYTES != 0 || !(1..=GRAINS_MAX).contains(&grains) {
            return None;
        }
        // Equal for a block that was made smaller in its place.
        if grains_of(unit.load(Relaxed)) == grains {
            return Some(unit.load(Relaxed));
        }
        let mut spare = self.spare.lock();
        let word = unit.load(Relaxed);
        if grains_of(word) != grains {
            let notes = spare.take(grains)?.as_ptr().expose_provenance() as u64;
            if notes >> (u64::BITS - GRAINS_BITS) != 0 {
                return None;
            }
            unit.store(notes << GRAINS_BITS | grains as u64, Relaxed);
            if let Some(old) = NonNull::new(notes_at(word)) {
                // SAFETY: 1: the unit had them for blocks of that size, and has others now. No block of that size is live.
                unsafe { spare.give(old, grains_of(word)) };
            }
        }
        Some(unit.load(Relaxed))
    }
}

impl fmt::Debug for Notes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notes").field("base", &self.base).finish_non_exhaustive()
    }
}

/// The grains of a unit's blocks; 0 for a unit without notes.
#[inline]
const fn grains_of(word: u64) -> usize {
    word as u16 as usize
}

/// A unit's notes; null for none.
#[inline]
fn notes_at(word: u64) -> *mut u8 {
    ptr::with_exposed_provenance_mut((word >> GRAINS_BITS) as usize)
}

/// Which of the blocks of a unit begins at `block`, where all have this many grains.
#[inline(always)]
fn index_of(block: NonNull<u8>, grains: usize) -> usize {
    let grains = grains % RECIPROCALS.len();
    // Blocks are multiples of a grain, and begin at least their bytes apart, so that no two in a unit have one index.
    let offset = block.addr().get() % UNIT_BYTES / GRAIN_BYTES * GRAIN_BYTES;
    ((offset as u64 * RECIPROCALS[grains]) >> (u32::BITS + GRAIN_BYTES.ilog2())) as usize
}

/// The note of `block` in a unit with this word, whose blocks have so many grains, at most [`NARROW_GRAINS`]: it is one word.
#[inline(always)]
fn narrow_note(word: u64, block: NonNull<u8>, grains: usize) -> &'static AtomicU32 {
    debug_assert!(grains == grains_of(word) && grains <= NARROW_GRAINS);
    let notes: *mut AtomicU32 = notes_at(word).wrapping_add(size_of::<*mut u8>()).cast();
    // SAFETY: `notes_bytes` has room for the note of each block of this size in a unit, and notes live for ever.
    unsafe { &*notes.wrapping_add(index_of(block, grains)) }
}

/// The note of `block` in a unit with this word, which is not 0: the word that names the site, and that of the bytes, if there is
/// one.
#[inline(always)]
fn note_of(word: u64, block: NonNull<u8>) -> (&'static AtomicU32, Option<&'static AtomicU32>) {
    let grains = grains_of(word);
    if grains <= NARROW_GRAINS {
        return (narrow_note(word, block, grains), None);
    }
    let notes: *mut AtomicU32 = notes_at(word).wrapping_add(size_of::<*mut u8>()).cast();
    let note = notes.wrapping_add(2 * index_of(block, grains));
    // SAFETY: `notes_bytes` has room for the two words of each block of this size in a unit, and notes live for ever.
    let first = unsafe { &*note };
    // SAFETY: as above: these notes have two words.
    (first, Some(unsafe { &*note.wrapping_add(1) }))
}
