//! Owns the record of live blocks outside of them: which addresses are blocks, of what size, of which hooks, and from where.
//!
//! One process-wide table in 64 shards, each behind its own lock, with 16 bytes an entry:
//!
//! ```text
//!   bits 0..44   44..88   88..116   116..125   125        126                           127
//!   address/16   size     site      owner      baseline   freed (held in a quarantine)  gone
//! ```
//!
//! A shard is an open-addressed table with linear probing that grows by a quarter when more than two thirds full, so that a
//! live block costs 24 to 30 bytes and few places are looked at. The entry of a block that is gone keeps its place: allocators
//! hand out the same addresses again. Those that are not handed out again go when the table is full, before it grows.
//! Its memory is mapped, never allocated. Leaves what an answer means to `checked.rs`.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};

use malloc_api::Domain;
use pymem_sync::{ForkLock, Lock, LockGuard, Rank};

use crate::os::mapping::MappedSlice;
use crate::sites::site::{SITE_BITS, Site};

/// The process's live blocks.
pub(crate) static LIVE: Registry = Registry::new();

/// Whether the program is over.
static IS_OVER: AtomicBool = AtomicBool::new(false);

/// Makes every block that comes from now on part of the baseline.
pub(crate) fn end_program() {
    IS_OVER.store(true, Relaxed);
}

/// Whether a block that is made now is part of the baseline.
#[inline]
pub(crate) fn program_is_over() -> bool {
    IS_OVER.load(Relaxed)
}

/// For a fork: nobody waits for another lock while holding one of these.
pub(crate) static FORK_LOCK: ForkLock = ForkLock::new(Rank::Memory, &LIVE.shards);

const SHARDS: usize = 64;
const SHARD_BITS: u32 = SHARDS.trailing_zeros();
/// Entries of a shard's first table: one page.
const FIRST_ENTRIES: usize = 256;

/// The hooks that a block belongs to, as a number: 0, 1 and 2 are nobody's in the domain of that number, since their hooks
/// are gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OwnerId(u16);

const OWNERS: usize = 1 << OWNER_BITS;
const NOBODIES: u16 = Domain::ALL.len() as u16;

/// The domain of each owner that there is, as its number and 1; 0 where there is none.
static OWNED: [AtomicU8; OWNERS] = [const { AtomicU8::new(0) }; OWNERS];

impl OwnerId {
    /// A new owner in `domain`; `None` if there are 509 already.
    pub(crate) fn new(domain: Domain) -> Option<Self> {
        let mark = domain.index() as u8 + 1;
        let is_taken = |place: &AtomicU8| place.compare_exchange(0, mark, Relaxed, Relaxed).is_ok();
        let others = usize::from(NOBODIES);
        let place = OWNED[others..].iter().position(is_taken)?;
        Some(Self((others + place) as u16))
    }

    /// Nobody in the domain of this owner.
    fn nobody(self) -> Self {
        Self(self.domain().index() as u16)
    }

    /// The domain of the blocks.
    pub(crate) fn domain(self) -> Domain {
        let index = match self.0 {
            nobody @ ..NOBODIES => usize::from(nobody),
            owner => usize::from(OWNED[usize::from(owner)].load(Relaxed)).saturating_sub(1),
        };
        Domain::ALL[index.min(Domain::ALL.len() - 1)]
    }
}

/// A block: live, or freed and held in a quarantine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    pub(crate) address: usize,
    /// At most 2^44 - 1.
    pub(crate) size: usize,
    pub(crate) owner: OwnerId,
    /// Where it was allocated, or freed if `freed`.
    pub(crate) site: Option<Site>,
    pub(crate) freed: bool,
    /// Whether the block was there when leaks were last said to begin.
    pub(crate) baseline: bool,
}

const ADDRESS_BITS: u32 = 44;
const SIZE_BITS: u32 = 44;
const OWNER_BITS: u32 = 9;
const SITE_SHIFT: u32 = ADDRESS_BITS + SIZE_BITS;
const OWNER_SHIFT: u32 = SITE_SHIFT + SITE_BITS;

impl Entry {
    #[inline]
    fn pack(self) -> u128 {
        u128::from(key(self.address))
            | (self.size as u128) << ADDRESS_BITS
            | u128::from(Site::to_bits(self.site)) << SITE_SHIFT
            | u128::from(self.owner.0) << OWNER_SHIFT
            | u128::from(self.baseline) << 125
            | u128::from(self.freed) << 126
    }

    #[inline]
    fn unpack(packed: u128) -> Self {
        Self {
            address: ((packed & mask(ADDRESS_BITS)) as usize) << 4,
            size: (packed >> ADDRESS_BITS & mask(SIZE_BITS)) as usize,
            owner: OwnerId((packed >> OWNER_SHIFT & mask(OWNER_BITS)) as u16),
            site: Site::from_bits((packed >> SITE_SHIFT & mask(SITE_BITS)) as u32),
            freed: packed >> 126 & 1 == 1,
            baseline: packed & BASELINE != 0,
        }
    }
}

const fn mask(bits: u32) -> u128 {
    (1 << bits) - 1
}

const BASELINE: u128 = 1 << 125;
const FREED: u128 = 1 << 126;
const GONE: u128 = 1 << 127;
const SITE: u128 = mask(SITE_BITS) << SITE_SHIFT;
const OWNER: u128 = mask(OWNER_BITS) << OWNER_SHIFT;

/// Whether an address can be that of an entry.
#[inline]
fn has_key(address: usize) -> bool {
    address % 16 == 0 && address as u64 >> (ADDRESS_BITS + 4) == 0
}

/// An address as the low bits of an entry. Only multiples of 16 are ever inserted, and 0 never.
#[inline]
fn key(address: usize) -> u64 {
    (address >> 4) as u64 & mask(ADDRESS_BITS) as u64
}

/// The key of an entry; 0 of an empty place.
#[inline]
fn key_of(packed: u128) -> u64 {
    packed as u64 & mask(ADDRESS_BITS) as u64
}

pub(crate) struct Registry {
    shards: [Lock<Shard>; SHARDS],
}

impl Registry {
    const fn new() -> Self {
        Self { shards: [const { Lock::new(Shard { table: None, len: 0 }) }; SHARDS] }
    }

    #[inline(always)]
    fn shard(&self, hash: u64) -> LockGuard<'_, Shard> {
        self.shards[(hash >> (64 - SHARD_BITS)) as usize].lock()
    }

    /// Records a live block; `false` if there is no memory for it, or if it is none that an entry can describe. An entry of
    /// the same address is replaced.
    #[inline]
    pub(crate) fn insert(&self, entry: Entry) -> bool {
        if !has_key(entry.address) || entry.size as u128 > mask(SIZE_BITS) {
            return false;
        }
        let hash = hash(key(entry.address));
        self.shard(hash).insert(entry.pack(), hash)
    }

    /// Takes the live block of `owner` at `address` out, or marks it freed at `freed_at` if `hold`. An error is what stands
    /// there instead.
    #[inline]
    pub(crate) fn take(
        &self,
        address: usize,
        owner: OwnerId,
        hold: bool,
        freed_at: Option<Site>,
    ) -> Result<Entry, Option<Entry>> {
        if !has_key(address) {
            return Err(None);
        }
        let hash = hash(key(address));
        let mut shard = self.shard(hash);
        let place = shard.known(key(address), hash).ok_or(None)?;
        let packed = *place;
        let entry = Entry::unpack(packed);
        if entry.freed || entry.owner != owner {
            return Err(Some(entry));
        }
        *place = if hold {
            let freed_at = u128::from(Site::to_bits(freed_at)) << SITE_SHIFT;
            packed & !SITE | freed_at | FREED
        } else {
            packed | GONE
        };
        Ok(entry)
    }

    /// The block at `address`, live or held.
    pub(crate) fn get(&self, address: usize) -> Option<Entry> {
        if !has_key(address) {
            return None;
        }
        let hash = hash(key(address));
        self.shard(hash).known(key(address), hash).map(|place| Entry::unpack(*place))
    }

    /// Forgets the block at `address`.
    #[inline]
    pub(crate) fn remove(&self, address: usize) {
        let hash = hash(key(address));
        if let Some(place) = self.shard(hash).known(key(address), hash) {
            *place |= GONE;
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
            shard.lock().known_entries().for_each(|entry| f(Entry::unpack(entry)));
        }
    }

    /// Makes every block that is live now part of the baseline.
    pub(crate) fn set_baseline(&self) {
        self.change(|packed| packed | if packed == 0 { 0 } else { BASELINE });
    }

    /// Puts in the place of every packed entry what `change` makes of it, shard by shard; an empty place is 0.
    fn change(&self, change: impl Fn(u128) -> u128) {
        for shard in &self.shards {
            shard.lock().entries_mut().iter_mut().for_each(|packed| *packed = change(*packed));
        }
    }

    /// Leaves the blocks of `owner` to nobody, and ends the owner.
    pub(crate) fn disown(&self, owner: OwnerId) {
        let nobody = u128::from(owner.nobody().0) << OWNER_SHIFT;
        self.change(|packed| match Entry::unpack(packed).owner == owner {
            true => packed & !OWNER | nobody,
            false => packed,
        });
        OWNED[usize::from(owner.0)].store(0, Relaxed);
    }

    /// How many shards are locked.
    #[cfg(test)]
    pub(crate) fn locked(&self) -> usize {
        self.shards.iter().filter(|shard| shard.raw().is_locked()).count()
    }
}

/// Fibonacci hashing: the upper bits pick the shard, the next ones the place in it.
#[inline]
fn hash(key: u64) -> u64 {
    key.wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

pub(crate) struct Shard {
    table: Option<MappedSlice<u128>>,
    /// Entries, those of blocks that are gone included.
    len: usize,
}

impl Shard {
    fn entries(&self) -> &[u128] {
        self.table.as_deref().unwrap_or_default()
    }

    fn entries_mut(&mut self) -> &mut [u128] {
        self.table.as_deref_mut().unwrap_or_default()
    }

    /// The entries of blocks that are live or held.
    fn known_entries(&self) -> impl Iterator<Item = u128> {
        self.entries().iter().copied().filter(|&packed| packed != 0 && packed & GONE == 0)
    }

    /// The place of the live or held block of this key.
    #[inline(always)]
    fn known(&mut self, key: u64, hash: u64) -> Option<&mut u128> {
        let entries = self.entries_mut();
        let place = &mut entries[search(entries, key, hash)?];
        (key_of(*place) == key && *place & GONE == 0).then_some(place)
    }

    #[inline(always)]
    fn insert(&mut self, packed: u128, hash: u64) -> bool {
        let key = key_of(packed);
        let len = self.len;
        let entries = self.entries_mut();
        if let Some(index) = search(entries, key, hash) {
            let is_new = entries[index] == 0;
            if !is_new || (len + 1) * 3 <= entries.len() * 2 {
                entries[index] = packed;
                self.len += usize::from(is_new);
                return true;
            }
        }
        self.insert_in_grown(packed, hash)
    }

    /// Inserts a new entry into a table that is too full for one.
    #[cold]
    #[inline(never)]
    fn insert_in_grown(&mut self, packed: u128, hash: u64) -> bool {
        // As long as one place stays empty, every search ends.
        if !self.grow() && self.len + 1 >= self.entries().len() {
            return false;
        }
        let entries = self.entries_mut();
        if let Some(index) = search(entries, key_of(packed), hash) {
            entries[index] = packed;
            self.len += 1;
        }
        true
    }

    /// Drops what is gone, and adds a quarter of places if more than half of them are still taken.
    fn grow(&mut self) -> bool {
        let known = self.known_entries().count();
        let old_len = self.entries().len();
        let len = if known * 2 > old_len { old_len / 4 * 5 } else { old_len };
        let Some(mut table) = MappedSlice::new(len.max(FIRST_ENTRIES)) else {
            return false;
        };
        for packed in self.known_entries() {
            let key = key_of(packed);
            if let Some(index) = search(&table, key, hash(key)) {
                table[index] = packed;
            }
        }
        self.table = Some(table);
        self.len = known;
        true
    }
}

/// The index of the key's entry, or of the empty place where it would stand; `None` without a table.
#[inline(always)]
fn search(entries: &[u128], key: u64, hash: u64) -> Option<usize> {
    // Where an entry of this hash would stand, were it alone.
    let spread = u128::from(hash << SHARD_BITS);
    let mut index = ((spread * entries.len() as u128) >> 64) as usize;
    loop {
        let here = key_of(*entries.get(index)?);
        if here == key || here == 0 {
            return Some(index);
        }
        index += 1;
        if index == entries.len() {
            index = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn entry(address: usize, size: usize) -> Entry {
        let site = Site::from_bits((address >> 4) as u32 & ((1 << SITE_BITS) - 1));
        Entry {
            address,
            size,
            owner: OwnerId((size % OWNERS) as u16),
            site,
            freed: size % 2 == 1,
            baseline: size % 3 == 1,
        }
    }

    #[test]
    fn an_entry_survives_packing() {
        for address in [16, 0x7fff_ffff_fff0, 0xffff_ffff_fff0] {
            for size in [0, 1, 512, (1 << 44) - 1] {
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

    /// Blocks come and go at ever new addresses: their entries do not stay.
    #[test]
    fn what_is_gone_takes_no_memory() {
        let registry = Registry::new();
        for count in 1..=400_000_usize {
            assert!(registry.insert(entry(count * 32, 2)));
            if count > 1000 {
                registry.remove((count - 1000) * 32);
            }
        }
        let places: usize = registry.shards.iter().map(|s| s.lock().entries().len()).sum();
        assert!(places <= SHARDS * FIRST_ENTRIES, "{places} places for 1,000 blocks");
        let mut seen = 0;
        registry.for_each(|_| seen += 1);
        assert_eq!(seen, 1000);
    }

    #[test]
    fn at_most_32_bytes_a_block() {
        let registry = Registry::new();
        for count in 1..=400_000_usize {
            assert!(registry.insert(entry(count * 32, 1)));
            if count % 50_000 == 0 {
                let places: usize = registry.shards.iter().map(|s| s.lock().entries().len()).sum();
                assert!(places * size_of::<u128>() <= count * 32, "{count}: {places}");
            }
        }
    }
}
