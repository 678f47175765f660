//! Owns the record of live blocks outside of them: which addresses are blocks, of what size, domain and site.
//!
//! One process-wide table in 64 shards, each behind its own lock, with 16 bytes an entry:
//!
//! ```text
//!   bits 0..44   44..92   92..124   124..126   126
//!   address/16   size     site      domain     freed (held in a quarantine)
//! ```
//!
//! A shard is an open-addressed table with linear probing that grows by a quarter when more than two thirds full, so that a
//! live block costs 24 to 30 bytes and few places are looked at. Its memory is mapped, never allocated. Leaves what an
//! answer means to `checked.rs`.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::block::ApiId;
use crate::mapping::MappedSlice;
use crate::sites::Site;

/// The process's live blocks.
pub(crate) static LIVE: Registry = Registry::new();

const SHARDS: usize = 64;
const SHARD_BITS: u32 = SHARDS.trailing_zeros();
/// Entries of a shard's first table: one page.
const FIRST_ENTRIES: usize = 256;

/// A block: live, or freed and held in a quarantine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    pub(crate) address: usize,
    pub(crate) size: usize,
    pub(crate) api: ApiId,
    /// Where it was allocated, or freed if `freed`.
    pub(crate) site: Option<Site>,
    pub(crate) freed: bool,
}

const ADDRESS_BITS: u32 = 44;
const SIZE_BITS: u32 = 48;

impl Entry {
    fn pack(self) -> u128 {
        let api = match self.api {
            ApiId::Raw => 0,
            ApiId::Mem => 1,
            ApiId::Obj => 2,
        };
        key(self.address)
            | (self.size as u128) << ADDRESS_BITS
            | u128::from(Site::to_bits(self.site)) << (ADDRESS_BITS + SIZE_BITS)
            | api << 124
            | u128::from(self.freed) << 126
    }

    fn unpack(packed: u128) -> Self {
        Self {
            address: ((packed & mask(ADDRESS_BITS)) as usize) << 4,
            size: (packed >> ADDRESS_BITS & mask(SIZE_BITS)) as usize,
            api: ApiId::ALL[((packed >> 124) as usize & 3).min(2)],
            site: Site::from_bits((packed >> (ADDRESS_BITS + SIZE_BITS)) as u32),
            freed: packed >> 126 & 1 == 1,
        }
    }
}

const fn mask(bits: u32) -> u128 {
    (1 << bits) - 1
}

/// An address as the low bits of an entry. Only multiples of 16 are ever inserted.
fn key(address: usize) -> u128 {
    (address >> 4) as u128 & mask(ADDRESS_BITS)
}

/// Why an address is not a live block of the domain that asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Rejection {
    /// It is no block.
    Missing,
    /// It is another domain's.
    WrongDomain(Entry),
    /// It was freed, and is held in a quarantine.
    Freed(Entry),
}

impl Rejection {
    /// The block that is there.
    pub(crate) fn entry(self) -> Option<Entry> {
        match self {
            Self::Missing => None,
            Self::Freed(entry) | Self::WrongDomain(entry) => Some(entry),
        }
    }
}

pub(crate) struct Registry {
    shards: [Mutex<Shard>; SHARDS],
}

/// All shards, locked.
pub(crate) type AllShards = [MutexGuard<'static, Shard>; SHARDS];

impl Registry {
    const fn new() -> Self {
        Self { shards: [const { Mutex::new(Shard { table: None, len: 0 }) }; SHARDS] }
    }

    fn shard(&self, hash: u64) -> MutexGuard<'_, Shard> {
        lock(&self.shards[(hash >> (64 - SHARD_BITS)) as usize])
    }

    /// Records a live block; `false` if there is no memory for it. An entry of the same address is replaced.
    pub(crate) fn insert(&self, entry: Entry) -> bool {
        let hash = hash(key(entry.address));
        self.shard(hash).insert(entry.pack(), hash)
    }

    /// Takes the live block of `api` at `address` out, or marks it freed at `freed_at` if `hold`.
    pub(crate) fn take(
        &self,
        address: usize,
        api: ApiId,
        hold: bool,
        freed_at: Option<Site>,
    ) -> Result<Entry, Rejection> {
        if address % 16 != 0 {
            return Err(Rejection::Missing);
        }
        let hash = hash(key(address));
        let mut shard = self.shard(hash);
        let index = shard.find(key(address), hash).ok_or(Rejection::Missing)?;
        let entry = Entry::unpack(shard.entries()[index]);
        if entry.freed {
            return Err(Rejection::Freed(entry));
        }
        if entry.api != api {
            return Err(Rejection::WrongDomain(entry));
        }
        if hold {
            let held = Entry { freed: true, site: freed_at, ..entry };
            shard.entries_mut()[index] = held.pack();
        } else {
            shard.remove(index);
        }
        Ok(entry)
    }

    /// The block at `address`, live or held.
    pub(crate) fn get(&self, address: usize) -> Option<Entry> {
        if address % 16 != 0 {
            return None;
        }
        let hash = hash(key(address));
        let shard = self.shard(hash);
        shard.find(key(address), hash).map(|index| Entry::unpack(shard.entries()[index]))
    }

    /// Forgets the block at `address`.
    pub(crate) fn remove(&self, address: usize) {
        let hash = hash(key(address));
        let mut shard = self.shard(hash);
        if let Some(index) = shard.find(key(address), hash) {
            shard.remove(index);
        }
    }

    /// The block whose data `address` lies in, by a walk over all of them: for reports.
    pub(crate) fn enclosing(&self, address: usize) -> Option<Entry> {
        let mut found = None;
        self.for_each(|entry| {
            if entry.address < address && address - entry.address < entry.size {
                found = Some(entry);
            }
        });
        found
    }

    /// Calls `f` with every entry, shard by shard; the entry's shard is locked meanwhile.
    pub(crate) fn for_each(&self, mut f: impl FnMut(Entry)) {
        for shard in &self.shards {
            let shard = lock(shard);
            shard.entries().iter().filter(|&&e| e != 0).for_each(|&e| f(Entry::unpack(e)));
        }
    }

    /// Locks all shards, for a fork.
    pub(crate) fn lock_all(&'static self) -> AllShards {
        core::array::from_fn(|index| lock(&self.shards[index]))
    }
}

/// A panic never leaves a shard half changed: nothing in here panics.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Fibonacci hashing: the upper bits pick the shard, the next ones the place in it.
fn hash(key: u128) -> u64 {
    let mixed = (key as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed ^ mixed >> 32).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

pub(crate) struct Shard {
    table: Option<MappedSlice<u128>>,
    len: usize,
}

impl Shard {
    fn entries(&self) -> &[u128] {
        self.table.as_deref().unwrap_or_default()
    }

    fn entries_mut(&mut self) -> &mut [u128] {
        self.table.as_deref_mut().unwrap_or_default()
    }

    /// Where an entry of this hash would stand, were it alone.
    fn home(&self, hash: u64) -> usize {
        let spread = u128::from(hash << SHARD_BITS);
        ((spread * self.entries().len() as u128) >> 64) as usize
    }

    fn after(&self, index: usize) -> usize {
        if index + 1 == self.entries().len() { 0 } else { index + 1 }
    }

    fn find(&self, key: u128, hash: u64) -> Option<usize> {
        let entries = self.entries();
        if entries.is_empty() {
            return None;
        }
        let mut index = self.home(hash);
        while entries[index] != 0 {
            if entries[index] & mask(ADDRESS_BITS) == key {
                return Some(index);
            }
            index = self.after(index);
        }
        None
    }

    fn insert(&mut self, packed: u128, hash: u64) -> bool {
        if (self.len + 1) * 3 > self.entries().len() * 2 && !self.grow() {
            return false;
        }
        let key = packed & mask(ADDRESS_BITS);
        let mut index = self.home(hash);
        loop {
            let here = self.entries()[index];
            if here == 0 {
                self.len += 1;
                break;
            }
            if here & mask(ADDRESS_BITS) == key {
                break;
            }
            index = self.after(index);
        }
        self.entries_mut()[index] = packed;
        true
    }

    /// A quarter as many entries again.
    #[cold]
    fn grow(&mut self) -> bool {
        let len = (self.entries().len() / 4 * 5).max(FIRST_ENTRIES);
        let Some(table) = MappedSlice::new(len) else {
            // As long as one place stays empty, every search ends.
            return self.len + 1 < self.entries().len();
        };
        let old = self.table.replace(table);
        self.len = 0;
        for &packed in old.as_deref().unwrap_or_default() {
            if packed != 0 {
                self.insert(packed, hash_of(packed));
            }
        }
        true
    }

    /// Removes the entry at `index`, and closes the gap that this leaves in a run of entries.
    fn remove(&mut self, index: usize) {
        let mut gap = index;
        let mut next = self.after(gap);
        while self.entries()[next] != 0 {
            let home = self.home(hash_of(self.entries()[next]));
            // The entry may move to the gap unless its home lies after the gap, in the cyclic range (gap, next].
            let stays =
                if gap <= next { gap < home && home <= next } else { gap < home || home <= next };
            if !stays {
                self.entries_mut()[gap] = self.entries()[next];
                gap = next;
            }
            next = self.after(next);
        }
        self.entries_mut()[gap] = 0;
        self.len -= 1;
    }
}

fn hash_of(packed: u128) -> u64 {
    hash(packed & mask(ADDRESS_BITS))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn entry(address: usize, size: usize) -> Entry {
        let site = Site::from_bits((address >> 4) as u32);
        Entry { address, size, api: ApiId::ALL[size % 3], site, freed: size % 2 == 1 }
    }

    #[test]
    fn an_entry_survives_packing() {
        for address in [16, 0x7fff_ffff_fff0, 0xffff_ffff_fff0] {
            for size in [0, 1, 512, (1 << 48) - 1] {
                let entry = entry(address, size);
                assert_eq!(Entry::unpack(entry.pack()), entry);
            }
        }
    }

    #[test]
    fn agrees_with_a_map() {
        let mut random = fastrand::Rng::with_seed(7);
        let registry = Registry::new();
        let mut model = HashMap::new();
        for _ in 0..200_000 {
            let address = random.usize(1..20_000) * 16;
            match random.u8(0..5) {
                0..3 => {
                    let entry = entry(address, random.usize(0..1 << 40));
                    assert!(registry.insert(entry));
                    model.insert(address, entry);
                }
                3 => {
                    registry.remove(address);
                    model.remove(&address);
                }
                _ => assert_eq!(registry.get(address), model.get(&address).copied()),
            }
        }
        let mut seen = 0;
        registry.for_each(|e| {
            seen += 1;
            assert_eq!(model.get(&e.address), Some(&e));
        });
        assert_eq!(seen, model.len());
    }

    #[test]
    fn at_most_32_bytes_a_block() {
        let registry = Registry::new();
        for count in 1..=400_000_usize {
            assert!(registry.insert(entry(count * 32, 1)));
            if count % 50_000 == 0 {
                let places: usize = registry.shards.iter().map(|s| lock(s).entries().len()).sum();
                assert!(places * size_of::<u128>() <= count * 32, "{count}: {places}");
            }
        }
    }
}
