//! Owns which slots of the guard pages are free, and which groups of them are retired: those of long-lived blocks, whose pages all
//! stay open until the last of the blocks is freed. Leaves the pages to `pool.rs`.

use crate::guard::countdown::random;
use crate::os::mapping::MappedSlice;

/// Slots of a group, which retires as one.
pub(crate) const GROUP_SLOTS: usize = 64;
/// Live blocks between pages that fault: the kernel keeps two records for each, and gives a process 65,530.
const MOST_GUARDED: usize = 8192;

/// The mark of a group whose pages all stay open, beside the count of its live blocks: their guard pages serve newer blocks.
const RETIRED: u32 = 1 << 31;

/// Free slots, oldest first. Slots that were never used come before any other.
pub(crate) struct FreeSlots {
    ring: MappedSlice<u32>,
    first: usize,
    len: usize,
    unused: usize,
    /// Live blocks of each group, and [`RETIRED`].
    groups: MappedSlice<u32>,
    /// A bit for each slot of a group: whether it is in the ring.
    listed: MappedSlice<u64>,
    /// Live blocks of the groups that are not retired.
    pub(crate) guarded: usize,
    /// Slots of the groups that are.
    pub(crate) retired: usize,
    /// The group that is looked at next.
    next_group: usize,
}

impl FreeSlots {
    /// `slots` free ones, a multiple of [`GROUP_SLOTS`]; `None` without memory.
    pub(crate) fn new(slots: usize) -> Option<Self> {
        Some(Self {
            ring: MappedSlice::new(slots)?,
            first: 0,
            len: 0,
            unused: 0,
            groups: MappedSlice::new(slots / GROUP_SLOTS)?,
            listed: MappedSlice::new(slots / GROUP_SLOTS)?,
            guarded: 0,
            retired: 0,
            next_group: 0,
        })
    }

    /// Whether a block gets a slot: always while half of them are left, and one in four each time that half of the rest is
    /// taken, so that there are some for what is made later.
    fn has_turn(&self) -> bool {
        let slots = self.ring.len();
        let left = self.len + slots - self.unused;
        let halvings = (slots / left.max(1)).ilog2();
        random() & ((1 << (2 * halvings).min(31)) - 1) == 0
    }

    /// A slot for a block whose turn it is, if there is one for it.
    pub(crate) fn take(&mut self) -> Option<usize> {
        if self.guarded >= 2 * MOST_GUARDED || !self.has_turn() {
            return None;
        }
        let slot = if self.unused < self.ring.len() {
            self.unused += 1;
            self.unused - 1
        } else {
            loop {
                let slot = self.pop()?;
                // It was free when its group retired.
                if !self.is_retired(slot) {
                    break slot;
                }
            }
        };
        self.groups[slot / GROUP_SLOTS] += 1;
        self.guarded += 1;
        Some(slot)
    }

    pub(crate) fn is_retired(&self, slot: usize) -> bool {
        self.groups[slot / GROUP_SLOTS] & RETIRED != 0
    }

    /// An old group that is mostly live, if it is time for one to retire.
    pub(crate) fn group_to_retire(&mut self) -> Option<usize> {
        if self.guarded < MOST_GUARDED {
            return None;
        }
        let used = self.unused / GROUP_SLOTS;
        let mut turns = (0..used).map(|turn| (self.next_group + turn) % used);
        let is_mostly_live = |&group: &usize| {
            let live = self.groups[group];
            live & RETIRED == 0 && live as usize >= GROUP_SLOTS / 2
        };
        let group = turns.find(is_mostly_live)?;
        self.next_group = group + 1;
        Some(group)
    }

    /// The pages of `group` are open.
    pub(crate) fn retire(&mut self, group: usize) {
        self.guarded -= self.groups[group] as usize;
        self.groups[group] |= RETIRED;
        self.retired += GROUP_SLOTS;
    }

    /// The block of a slot is freed. Gives the number of its group if that is retired, and this was its last one: all its slots
    /// are free now, so that its pages must be closed before another one is taken.
    pub(crate) fn give(&mut self, slot: usize) -> Option<usize> {
        let group = slot / GROUP_SLOTS;
        self.groups[group] -= 1;
        if !self.is_retired(slot) {
            self.guarded -= 1;
            self.push(slot);
            return None;
        }
        if self.groups[group] != RETIRED {
            return None;
        }
        self.groups[group] = 0;
        self.retired -= GROUP_SLOTS;
        let slots = group * GROUP_SLOTS..(group + 1) * GROUP_SLOTS;
        slots.for_each(|slot| self.push(slot));
        Some(group)
    }

    /// Puts a slot into the ring, if it is not there.
    fn push(&mut self, slot: usize) {
        let listed = &mut self.listed[slot / GROUP_SLOTS];
        let bit = 1 << (slot % GROUP_SLOTS);
        if *listed & bit == 0 {
            *listed |= bit;
            let place = (self.first + self.len) % self.ring.len();
            self.ring[place] = slot as u32;
            self.len += 1;
        }
    }

    fn pop(&mut self) -> Option<usize> {
        self.len = self.len.checked_sub(1)?;
        let slot = self.ring[self.first] as usize;
        self.first = (self.first + 1) % self.ring.len();
        self.listed[slot / GROUP_SLOTS] &= !(1 << (slot % GROUP_SLOTS));
        Some(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each slot is taken once and given once, in whatever order groups retire and come back.
    #[test]
    fn no_slot_is_lost_or_has_two_blocks() {
        const SLOTS: usize = 16 * GROUP_SLOTS;
        let mut random = fastrand::Rng::with_seed(7);
        let mut free = FreeSlots::new(SLOTS).expect("memory");
        let mut live = Vec::new();
        let mut is_live = [false; SLOTS];
        let mut came_back = 0;
        for round in 0..60_000 {
            if (round / 5000) % 2 == 0 {
                if let Some(slot) = free.take() {
                    assert!(!free.is_retired(slot) && !is_live[slot], "{slot} is taken twice");
                    is_live[slot] = true;
                    live.push(slot);
                }
            } else if !live.is_empty() {
                let slot = live.swap_remove(random.usize(..live.len()));
                is_live[slot] = false;
                came_back += usize::from(free.give(slot).is_some());
            }
            let group = random.usize(..SLOTS / GROUP_SLOTS);
            let unused = (group + 1) * GROUP_SLOTS > free.unused;
            if round % 50 == 0
                && !unused
                && free.groups[group] & !RETIRED != 0
                && !free.is_retired(group * GROUP_SLOTS)
            {
                free.retire(group);
            }
        }
        assert!(came_back > 20, "{came_back} groups came back");
        live.into_iter().for_each(|slot| _ = free.give(slot));
        assert_eq!((free.guarded, free.retired), (0, 0));
        let mut slots: Vec<_> = (free.unused..SLOTS).collect();
        slots.extend(core::iter::from_fn(|| free.pop()));
        slots.sort_unstable();
        assert!(slots.into_iter().eq(0..SLOTS), "every slot is free, once");
    }
}
