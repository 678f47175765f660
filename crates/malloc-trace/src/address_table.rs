//! Owns the recorder's slot table: which slot stands for which address. It never allocates after it was made.

/// A map from the addresses of live blocks to slots, and the slots that are free.
///
/// Open addressing with linear probing; a removal moves later entries back, so there are no tombstones.
///
/// Invariant 1: no empty entry lies between an address's home and its entry.
/// Invariant 2: at most half the entries are full, as each has a slot of its own; so every probe ends.
#[derive(Debug)]
pub(crate) struct AddressTable {
    /// Its length is a power of two. Address 0 stands for an empty entry.
    entries: Vec<Entry>,
    /// Slots that were given back; its capacity is `capacity`.
    free_slots: Vec<u32>,
    /// Slots ever given out.
    used_slots: u32,
    capacity: u32,
}

#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    address: usize,
    slot: u32,
}

impl AddressTable {
    /// A table for at most `capacity` live blocks; 0 counts as 1, and more than 2^30 as that.
    pub(crate) fn new(capacity: u32) -> Self {
        let capacity = capacity.clamp(1, 1 << 30);
        Self {
            entries: vec![Entry::default(); 2 * (capacity as usize).next_power_of_two()],
            free_slots: Vec::with_capacity(capacity as usize),
            used_slots: 0,
            capacity,
        }
    }

    /// Gives a slot to an address, or the one that it has; `None` if the table is full.
    pub(crate) fn insert(&mut self, address: usize) -> Option<u32> {
        let index = self.find(address);
        if self.entries[index].address == address {
            return Some(self.entries[index].slot);
        }
        let slot = match self.free_slots.pop() {
            Some(slot) => slot,
            None if self.used_slots < self.capacity => {
                self.used_slots += 1;
                self.used_slots - 1
            }
            None => return None,
        };
        self.entries[index] = Entry { address, slot };
        Some(slot)
    }

    /// Gives an address a slot that [`take`](AddressTable::take) took; a slot that it has is given back.
    pub(crate) fn insert_with(&mut self, address: usize, slot: u32) {
        let index = self.find(address);
        let replaced = self.entries[index];
        self.entries[index] = Entry { address, slot };
        if replaced.address == address {
            self.release(replaced.slot);
        }
    }

    /// Forgets an address and gives its slot, which stays taken; `None` if it has none.
    pub(crate) fn take(&mut self, address: usize) -> Option<u32> {
        let index = self.find(address);
        if self.entries[index].address != address {
            return None;
        }
        let slot = self.entries[index].slot;
        self.close_gap(index);
        Some(slot)
    }

    /// Gives back a slot that `take` took.
    pub(crate) fn release(&mut self, slot: u32) {
        // Never grows: the slots given back are among the `capacity` ones given out.
        self.free_slots.push(slot);
    }

    /// The entry of an address, or the empty one where it would stand. Address 0 is no block's.
    fn find(&self, address: usize) -> usize {
        let mut index = self.home(address);
        // Ends by invariant 2.
        while ![address, 0].contains(&self.entries[index].address) {
            index = self.after(index);
        }
        index
    }

    /// Empties the entry at `gap` and keeps invariant 1.
    fn close_gap(&mut self, mut gap: usize) {
        let mut index = gap;
        loop {
            index = self.after(index);
            let entry = self.entries[index];
            if entry.address == 0 {
                break;
            }
            // The entry may move back to the gap unless its home lies behind the gap.
            let from_home = self.distance(self.home(entry.address), index);
            if from_home >= self.distance(gap, index) {
                self.entries[gap] = entry;
                gap = index;
            }
        }
        self.entries[gap] = Entry::default();
    }

    fn home(&self, address: usize) -> usize {
        // Fibonacci hashing: the product's high bits depend on all bits of the address.
        let mixed = (address as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 32) as usize & (self.entries.len() - 1)
    }

    fn after(&self, index: usize) -> usize {
        (index + 1) & (self.entries.len() - 1)
    }

    fn distance(&self, from: usize, to: usize) -> usize {
        to.wrapping_sub(from) & (self.entries.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// Random inserts and removals against a map, in a table that is nearly always full.
    #[test]
    fn agrees_with_a_map() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut table = AddressTable::new(64);
        let mut map: HashMap<usize, u32> = HashMap::new();
        for _ in 0..20_000 {
            let address = 16 * rng.usize(1..120);
            match map.remove(&address) {
                Some(slot) => {
                    assert_eq!(table.take(address), Some(slot));
                    table.release(slot);
                }
                None if rng.bool() && map.contains_key(&16) => {
                    // What a `realloc` from 16 does.
                    let slot = table.take(16).expect("the map has it");
                    table.insert_with(address, slot);
                    map.remove(&16);
                    map.insert(address, slot);
                }
                None => match table.insert(address) {
                    Some(slot) => {
                        assert!(slot < 64 && !map.values().any(|&other| other == slot));
                        map.insert(address, slot);
                    }
                    None => assert_eq!(map.len(), 64),
                },
            }
            assert_eq!(table.take(16 * 121), None);
            for (&address, &slot) in &map {
                assert_eq!(table.insert(address), Some(slot));
            }
        }
    }

    /// A block that was freed unseen and handed out again.
    #[test]
    fn an_address_has_one_slot() {
        let mut table = AddressTable::new(2);
        let (first, second) = (table.insert(16), table.insert(32));
        assert_eq!(table.insert(16), first);
        assert_eq!(table.take(16), first);
        table.insert_with(32, first.expect("room"));
        assert_eq!(table.insert(48), second);
        assert_eq!(table.insert(64), None);
        assert_eq!((table.take(32), table.take(32)), (first, None));
    }
}
