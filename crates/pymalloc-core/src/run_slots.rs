//! Owns [`RunSlots`]: what is known of each slot of a span, and the lists of the free runs. Leaves to `runs.rs` where runs begin and end.

use core::ptr;

/// Bytes of a unit, which lengths are rounded up to.
pub(crate) const UNIT_BYTES: usize = 1 << UNIT_SHIFT;
pub(crate) const UNIT_SHIFT: u32 = 6;

/// Bytes of a slot, and of the shortest run.
pub(crate) const SLOT_BYTES: usize = 1 << SLOT_SHIFT;
const SLOT_SHIFT: u32 = 11;
pub(crate) const SLOT_UNITS: u32 = (SLOT_BYTES / UNIT_BYTES) as u32;

/// Free runs are in a list for each KiB of their length, those of 128 KiB and more for each power of two.
pub(crate) const LISTS: usize = 128 + 32;
const KIB_UNITS: u32 = (1024 / UNIT_BYTES) as u32;

/// Free runs of the wanted KiB that are looked at before longer ones: most may be a little too short.
const LOOKS: usize = 4;

/// No run begins at unit 0.
pub(crate) const NONE: u32 = 0;

/// In a length: the run is free. In a number of units with memory: they had it before the last period ended.
pub(crate) const FLAG: u32 = 1 << 31;

/// What is known of a slot. Zeros are right for one in which nothing has begun or ended yet.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Slot {
    /// Of the run that begins here: its length, with `FLAG` if it is free. May be of one that was part of a longer one since, but for
    /// runs in use.
    pub(crate) length: u32,
    /// The length of the run that ends here, if that is free; else 0.
    pub(crate) before: u32,
    /// Of the free run that begins here: units that may have memory, with `FLAG` for old ones.
    pub(crate) resident: u32,
    /// Of the free run that begins here: its neighbours in its list. Of one in use, `next` is where it begins.
    pub(crate) next: u32,
    pub(crate) previous: u32,
}

/// The list of free runs of a length.
pub(crate) const fn list_of(length: u32) -> usize {
    match length / KIB_UNITS {
        kib @ 0..128 => kib as usize,
        kib => 121 + kib.ilog2() as usize,
    }
}

/// The slots of a span, and the lists of its free runs. Lengths and places are in units.
#[derive(Debug)]
pub(crate) struct RunSlots {
    /// Invariant 1: a slot for each `SLOT_BYTES` before `end`.
    pub(crate) slots: *mut Slot,
    pub(crate) end: u32,
    /// Units of free runs.
    pub(crate) free: u32,
    /// Units of free runs that may have memory.
    pub(crate) resident: u32,
    pub(crate) lists: [u32; LISTS],
    /// A bit for each list that has a run.
    filled: [u64; LISTS.div_ceil(64)],
}

// SAFETY: the table belongs to this value alone.
unsafe impl Send for RunSlots {}

impl RunSlots {
    pub(crate) const fn new() -> Self {
        Self {
            slots: ptr::null_mut(),
            end: 0,
            free: 0,
            resident: 0,
            lists: [NONE; LISTS],
            filled: [0; LISTS.div_ceil(64)],
        }
    }

    /// The slot of `unit`, which lies in the span.
    #[inline]
    pub(crate) fn slot(&mut self, unit: u32) -> &mut Slot {
        debug_assert!(unit < self.end);
        // SAFETY: invariant 1, and callers ask for units of runs, which lie before `end`.
        let slot = unsafe { self.slots.add((unit / SLOT_UNITS) as usize) };
        // SAFETY: as above; the borrow is that of `self`.
        unsafe { &mut *slot }
    }

    /// Notes that a run in use begins at `start`.
    #[inline]
    pub(crate) fn set_used(&mut self, start: u32, length: u32) {
        let slot = self.slot(start);
        slot.length = length;
        slot.next = start;
    }

    /// The length of the run in use that begins at `start`; `None` where none does.
    #[inline]
    pub(crate) fn used(&mut self, start: u32) -> Option<u32> {
        let slot = self.slot(start);
        let is_used = slot.next == start && (1..FLAG).contains(&slot.length);
        is_used.then_some(slot.length)
    }

    /// All runs before `top`, each with where it begins.
    pub(crate) fn walk(&mut self, top: u32) -> impl Iterator<Item = (u32, Slot)> {
        let mut next = SLOT_UNITS;
        core::iter::from_fn(move || {
            let start = next;
            let slot = (start < top).then(|| *self.slot(start))?;
            next += slot.length & !FLAG;
            Some((start, slot))
        })
    }

    /// Puts a free run into its list.
    pub(crate) fn link(&mut self, start: u32, length: u32, resident: u32) {
        let list = list_of(length);
        let next = core::mem::replace(&mut self.lists[list], start);
        self.filled[list / 64] |= 1 << (list % 64);
        let slot = self.slot(start);
        slot.length = length | FLAG;
        slot.resident = resident;
        slot.next = next;
        slot.previous = NONE;
        self.slot(start + length - 1).before = length;
        if next != NONE {
            self.slot(next).previous = start;
        }
        self.free += length;
        self.resident += resident;
    }

    /// Takes a free run out of its list; returns its length, and its units that may have memory.
    pub(crate) fn unlink(&mut self, start: u32) -> (u32, u32) {
        let Slot { length, resident, next, previous, .. } = *self.slot(start);
        let (length, resident) = (length & !FLAG, resident & !FLAG);
        self.slot(start + length - 1).before = 0;
        if next != NONE {
            self.slot(next).previous = previous;
        }
        if previous != NONE {
            self.slot(previous).next = next;
        } else {
            let list = list_of(length);
            self.lists[list] = next;
            if next == NONE {
                self.filled[list / 64] &= !(1 << (list % 64));
            }
        }
        self.free -= length;
        self.resident -= resident;
        (length, resident)
    }

    /// A free run of at least `length`, among the shortest.
    #[inline]
    pub(crate) fn find(&mut self, length: u32) -> Option<u32> {
        let list = list_of(length);
        let mut start = self.lists[list];
        for _ in 0..LOOKS {
            if start == NONE {
                break;
            }
            let slot = *self.slot(start);
            if slot.length & !FLAG >= length {
                return Some(start);
            }
            start = slot.next;
        }
        let (mut word, bit) = ((list + 1) / 64, (list + 1) % 64);
        let mut bits = self.filled[word] & u64::MAX << bit;
        while bits == 0 {
            word += 1;
            bits = *self.filled.get(word)?;
        }
        Some(self.lists[word * 64 + bits.trailing_zeros() as usize])
    }

    /// Panics unless the lists have free runs of `free` units alone, of which `resident` may have memory.
    pub(crate) fn check(&mut self, free: u32, resident: u32) {
        assert_eq!((free, resident), (self.free, self.resident), "runs invariant 6");
        let mut listed = 0;
        for list in 0..LISTS {
            let (mut start, mut previous) = (self.lists[list], NONE);
            assert_eq!(
                start != NONE,
                self.filled[list / 64] >> (list % 64) & 1 == 1,
                "runs invariant 7"
            );
            while start != NONE {
                let slot = *self.slot(start);
                assert!(slot.length & FLAG != 0 && slot.previous == previous, "runs invariant 7");
                assert_eq!(list_of(slot.length & !FLAG), list, "runs invariant 7");
                listed += slot.length & !FLAG;
                (previous, start) = (start, slot.next);
            }
        }
        assert_eq!(listed, free, "runs invariant 7");
    }
}
