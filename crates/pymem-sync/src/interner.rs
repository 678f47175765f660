//! Owns [`Interner`]: a table that keeps each distinct key once, for as long as the table lives.

use core::alloc::Layout;
use core::marker::PhantomData;
use core::{array, fmt, hint, ptr};
use std::alloc::{GlobalAlloc, System};

use crate::lock::{Lock, RawLock};
use crate::sync::{AtomicPtr, AtomicU32, Ordering, Site, Witness, ZERO_IS_NEW, ordering};

/// Entries in the first chunk, so that a small table stays small. Each later chunk has twice as many as the one before.
const FIRST_ENTRIES: usize = 256;

/// The most chunks, for some 500 million entries.
const CHUNKS: usize = 21;

/// A table that only grows: each distinct key has one [`Entry`], which neither moves nor goes before the table does.
///
/// An entry has a number, from 0 in the order in which keys are added, by which whoever keeps many of them may keep four bytes
/// in place of a pointer. An entry costs eight bytes beyond key and value.
///
/// Finding a key that is there takes no lock: one load of a bucket, and one comparison for each key that shares the bucket.
/// Adding a key takes a lock. Memory comes from the system's allocator and never from the program's global allocator, so
/// that an allocator can keep its notes here.
///
/// The caller computes the hash; keys that are equal must have equal hashes.
///
/// **Fork**: hold [`lock`](Self::lock) over the fork, or a child may find it taken for ever.
///
/// # Examples
///
/// ```
/// use pymem_sync::Interner;
///
/// let names = Interner::new(64).expect("memory for 64 buckets");
/// let hash = |name: &str| name.bytes().fold(0, |hash, byte| hash * 31 + u64::from(byte));
/// let first = names.intern(hash("a"), "a", || 1).expect("memory");
/// let again = names.intern(hash("a"), "a", || 2).expect("memory");
/// assert!(std::ptr::eq(first, again));
/// assert_eq!((*first.key(), *first.value(), names.iter().count()), ("a", 1, 1));
/// ```
pub struct Interner<K, V> {
    /// The newest entry of each bucket, as a [`Link`]; a power of two of them.
    buckets: *mut AtomicU32,
    mask: usize,
    /// Entries, each written once: chunk n has `FIRST_ENTRIES << n` of them, and is null before the first of these. It is led to as far
    /// before its first entry as that is above the others in [`position`](Self::position): finding an entry takes a subtraction less.
    chunks: [AtomicPtr<Entry<K, V>>; CHUNKS],
    /// How many entries there are.
    count: AtomicU32,
    /// Held by whoever adds an entry.
    adding: Lock<()>,
    // Entries are owned, and dropped with the table.
    _owns: PhantomData<Entry<K, V>>,
}

/// An entry's number and 1; 0 for none.
type Link = u32;

/// A bucket that stands elsewhere, at what its keys belong to: four bytes, with which finding a key needs no hash and compares only
/// the keys of this chain.
#[derive(Debug)]
pub struct Chain(AtomicU32);

impl Chain {
    /// A chain without keys.
    #[must_use]
    pub fn new() -> Self {
        Self(AtomicU32::new(0))
    }
}

impl Default for Chain {
    fn default() -> Self {
        Self::new()
    }
}

/// One key of an [`Interner`], and what belongs to the key.
pub struct Entry<K, V> {
    key: K,
    value: V,
    number: u32,
    /// The next older entry of the same bucket.
    next: Link,
    /// An entry is written before it is linked.
    written: Witness,
}

// SAFETY: entries move with the table, and nothing else refers to them once the table is moved.
unsafe impl<K: Send, V: Send> Send for Interner<K, V> {}
// SAFETY: threads share `&K` and `&V` of linked entries (`loom_interner`), and hand keys and values to the table, which may
// be dropped by another thread.
unsafe impl<K: Send + Sync, V: Send + Sync> Sync for Interner<K, V> {}

impl<K: Eq, V> Interner<K, V> {
    /// An empty table with at least `buckets` buckets of one word each; `None` without memory for them.
    ///
    /// The number is rounded up to a power of two. It never changes: a table with ten times as many keys as buckets
    /// compares some ten keys at each call.
    #[must_use]
    pub fn new(buckets: usize) -> Option<Self> {
        let count = buckets.max(1).checked_next_power_of_two()?;
        let layout = Layout::array::<AtomicU32>(count).ok()?;
        // SAFETY: the layout has at least one word.
        let first = unsafe { System.alloc_zeroed(layout) }.cast::<AtomicU32>();
        if first.is_null() {
            return None;
        }
        if !ZERO_IS_NEW {
            for index in 0..count {
                // SAFETY: `index` is below the length of the array, which is not read before.
                unsafe { first.wrapping_add(index).write(AtomicU32::new(0)) };
            }
        }
        Some(Self {
            buckets: first,
            mask: count - 1,
            chunks: array::from_fn(|_| AtomicPtr::new(ptr::null_mut())),
            count: AtomicU32::new(0),
            adding: Lock::new(()),
            _owns: PhantomData,
        })
    }

    /// The entry of `key`; `None` if the key was not added yet.
    #[inline]
    #[must_use]
    pub fn find(&self, hash: u64, key: &K) -> Option<&Entry<K, V>> {
        // SAFETY: 1: a bucket of this table.
        unsafe { self.find_in(self.bucket(hash), key) }
    }

    /// The entry of `key` in a bucket.
    ///
    /// # Safety
    ///
    /// 1. No other table has linked an entry to the bucket.
    #[inline]
    unsafe fn find_in(&self, bucket: &AtomicU32, key: &K) -> Option<&Entry<K, V>> {
        // Acquire: pairs with the Release that links an entry in `add`; older entries of the bucket were linked before it
        // under the same lock, so one Acquire shows them all. See `loom_interner`.
        let newest = bucket.load(ordering(Site::InternerFind, Ordering::Acquire));
        // SAFETY: (1) the load above, of a link of this table (duty 1).
        unsafe { self.search(newest, key) }
    }

    /// The entry of `key`, which is added with the value that `make` returns if the key is not there yet; `None` without
    /// memory for it.
    ///
    /// `make` runs at most once, under the table's lock: it must not use the table.
    #[inline]
    pub fn intern(&self, hash: u64, key: K, make: impl FnOnce() -> V) -> Option<&Entry<K, V>> {
        // SAFETY: 1: a bucket of this table.
        unsafe { self.intern_from(self.bucket(hash), key, make) }
    }

    /// As [`intern`](Self::intern), of a key that is in `chain` alone: [`find`](Self::find) does not know of it.
    ///
    /// # Safety
    ///
    /// 1. `chain` is given to no other table.
    #[inline]
    pub unsafe fn intern_in(
        &self,
        Chain(newest): &Chain,
        key: K,
        make: impl FnOnce() -> V,
    ) -> Option<&Entry<K, V>> {
        // SAFETY: 1: duty 1.
        unsafe { self.intern_from(newest, key, make) }
    }

    /// As [`intern`](Self::intern), of a key in a bucket.
    ///
    /// # Safety
    ///
    /// 1. No other table has linked an entry to the bucket.
    #[inline]
    unsafe fn intern_from(
        &self,
        bucket: &AtomicU32,
        key: K,
        make: impl FnOnce() -> V,
    ) -> Option<&Entry<K, V>> {
        // SAFETY: 1: duty 1.
        match unsafe { self.find_in(bucket, &key) } {
            Some(entry) => Some(entry),
            // SAFETY: 1: duty 1.
            None => unsafe { self.add(bucket, key, make) },
        }
    }

    /// Adds a key to a bucket, if it is not there.
    ///
    /// # Safety
    ///
    /// 1. No other table has linked an entry to the bucket.
    #[cold]
    #[inline(never)]
    unsafe fn add(
        &self,
        bucket: &AtomicU32,
        key: K,
        make: impl FnOnce() -> V,
    ) -> Option<&Entry<K, V>> {
        let _adding = self.adding.lock();
        // Relaxed: only holders of the lock link entries.
        let newest = bucket.load(Ordering::Relaxed);
        // SAFETY: (1) the lock's Acquire shows what its last holder linked (duty 1).
        if let Some(entry) = unsafe { self.search(newest, &key) } {
            return Some(entry);
        }
        // Relaxed: only holders of the lock store it.
        let number = self.count.load(Ordering::Relaxed);
        let place = self.room_for(number)?;
        let entry = Entry { key, value: make(), number, next: newest, written: Witness::new() };
        // SAFETY: the place of this number, which nobody had before and nobody looks for yet.
        unsafe { place.write(entry) };
        // Release: pairs with the Acquire of `find`, which thereby reads a written entry. See `loom_interner`.
        bucket.store(number + 1, ordering(Site::InternerLink, Ordering::Release));
        // Release: pairs with the Acquire of `get`, as above.
        self.count.store(number + 1, ordering(Site::InternerList, Ordering::Release));
        // SAFETY: written above; an entry lives as long as the table.
        Some(unsafe { &*place })
    }

    /// The entry of `key` among `newest` and the older ones of its bucket.
    ///
    /// # Safety
    ///
    /// 1. `newest` is 0, or the link of an entry whose contents the caller's thread can see.
    #[inline]
    unsafe fn search(&self, newest: Link, key: &K) -> Option<&Entry<K, V>> {
        let mut next = newest;
        while let Some(number) = next.checked_sub(1) {
            // SAFETY: an entry that was written (1), which lives as long as the table; `next` of such an entry is one, too.
            let entry = unsafe { self.place(number).as_ref() }?;
            entry.written.see();
            if entry.key == *key {
                return Some(entry);
            }
            next = entry.next;
        }
        None
    }
}

impl<K, V> Interner<K, V> {
    #[inline]
    fn bucket(&self, hash: u64) -> &AtomicU32 {
        #[expect(clippy::cast_possible_truncation, reason = "the mask takes the low bits")]
        let index = hash as usize & self.mask;
        // SAFETY: the mask keeps `index` below the number of buckets.
        let bucket = unsafe { self.buckets.add(index) };
        // SAFETY: every bucket was written by `new`, and lives as long as the table.
        unsafe { &*bucket }
    }

    /// Which chunk an entry is in, and where; the first entry of chunk n is at `FIRST_ENTRIES << n`.
    #[inline]
    const fn position(number: u32) -> (usize, usize) {
        let at = number as usize + FIRST_ENTRIES;
        ((at / FIRST_ENTRIES).ilog2() as usize, at)
    }

    /// Where the entry of a number is; null where its chunk is not seen.
    #[inline]
    fn place(&self, number: u32) -> *mut Entry<K, V> {
        let (chunk, at) = Self::position(number);
        // Relaxed: stored before whatever showed the number to this thread.
        let Some(chunk) = self.chunks.get(chunk).map(|chunk| chunk.load(Ordering::Relaxed)) else {
            return ptr::null_mut();
        };
        if chunk.is_null() { chunk } else { chunk.wrapping_add(at) }
    }

    /// The place of a number that no entry has yet; `None` without memory. The caller holds the lock.
    fn room_for(&self, number: u32) -> Option<*mut Entry<K, V>> {
        let (chunk, at) = Self::position(number);
        let of_chunk = self.chunks.get(chunk)?;
        let mut entries = of_chunk.load(Ordering::Relaxed);
        if entries.is_null() {
            // SAFETY: an entry has at least one word, and a chunk some entries.
            let first: *mut Entry<K, V> = unsafe { System.alloc(Self::layout(chunk)?) }.cast();
            if first.is_null() {
                return None;
            }
            entries = first.wrapping_sub(FIRST_ENTRIES << chunk);
            // Relaxed: whoever looks for an entry has read a link that was stored later.
            of_chunk.store(entries, Ordering::Relaxed);
        }
        // Null again for memory at one address of all, which is then not used.
        (!entries.is_null()).then(|| entries.wrapping_add(at))
    }

    fn layout(chunk: usize) -> Option<Layout> {
        Layout::array::<Entry<K, V>>(FIRST_ENTRIES << chunk).ok()
    }

    /// The entry with this number; `None` if there is none yet.
    #[inline]
    #[must_use]
    pub fn get(&self, number: u32) -> Option<&Entry<K, V>> {
        // Acquire: pairs with the Release in `add`; see `loom_interner`.
        if number >= self.count.load(ordering(Site::InternerWalk, Ordering::Acquire)) {
            return None;
        }
        let (chunk, at) = Self::position(number);
        // SAFETY: an entry that was counted has a chunk.
        let chunk = unsafe { self.chunks.get_unchecked(chunk) };
        // Relaxed: stored before the entry was counted.
        let entry = chunk.load(Ordering::Relaxed).wrapping_add(at);
        // SAFETY: memory of the system, which is nowhere null. Whoever asks again whether there is an entry need not.
        unsafe { hint::assert_unchecked(!entry.is_null()) };
        // SAFETY: an entry that was written before it was counted; it lives as long as the table.
        let entry = unsafe { &*entry };
        entry.written.see();
        Some(entry)
    }

    /// Every entry, newest first; those that are added meanwhile are left out.
    pub fn iter(&self) -> impl Iterator<Item = &Entry<K, V>> {
        (0..self.len() as u32).rev().filter_map(|number| self.get(number))
    }

    /// How many keys the table has.
    #[must_use]
    pub fn len(&self) -> usize {
        // Relaxed: `get` asks again.
        self.count.load(Ordering::Relaxed) as usize
    }

    /// Whether the table has no key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The lock under which keys are added, for handlers of a fork.
    #[must_use]
    pub const fn lock(&self) -> &RawLock {
        self.adding.raw()
    }
}

impl<K, V> Entry<K, V> {
    /// The number of the entry, as [`Interner::get`] takes it.
    #[inline]
    #[must_use]
    pub const fn number(&self) -> u32 {
        self.number
    }

    /// The key.
    #[inline]
    #[must_use]
    pub const fn key(&self) -> &K {
        &self.key
    }

    /// What belongs to the key.
    #[inline]
    #[must_use]
    pub const fn value(&self) -> &V {
        &self.value
    }
}

impl<K, V> Drop for Interner<K, V> {
    fn drop(&mut self) {
        for number in 0..self.len() as u32 {
            // SAFETY: an entry that was written; `&mut self` says that nobody else refers to it.
            unsafe { self.place(number).drop_in_place() };
        }
        for (chunk, entries) in self.chunks.iter().enumerate() {
            let entries = entries.load(Ordering::Relaxed);
            if let Some(layout) = Self::layout(chunk).filter(|_| !entries.is_null()) {
                let first = entries.wrapping_add(FIRST_ENTRIES << chunk);
                // SAFETY: from `System.alloc` with this layout, and its entries were dropped.
                unsafe { System.dealloc(first.cast(), layout) };
            }
        }
        for index in 0..=self.mask {
            // SAFETY: within the array.
            let bucket = unsafe { self.buckets.add(index) };
            // SAFETY: written by `new`, and not used again.
            unsafe { bucket.drop_in_place() };
        }
        let layout = Layout::array::<AtomicU32>(self.mask + 1);
        // SAFETY: from `System.alloc` with the layout that `new` computed.
        let _ = layout.map(|layout| unsafe { System.dealloc(self.buckets.cast(), layout) });
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for Entry<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("key", &self.key).field("value", &self.value).finish()
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for Interner<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter().map(|entry| (&entry.key, &entry.value))).finish()
    }
}
