//! Owns [`Interner`]: a table that keeps each distinct key once, for as long as the table lives.

use core::alloc::Layout;
use core::marker::PhantomData;
use core::{fmt, iter, ptr};
use std::alloc::{GlobalAlloc, System};

use crate::lock::{Lock, RawLock};
use crate::sync::{AtomicPtr, Ordering, Site, Witness, ordering};

/// Entries in one chunk: some tens of KiB, so that a small table stays small.
const CHUNK_ENTRIES: usize = 256;

/// A table that only grows: each distinct key has one [`Entry`], which neither moves nor goes before the table does.
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
    /// The newest entry of each bucket; a power of two of them.
    buckets: *mut Link<K, V>,
    mask: usize,
    /// The newest entry of all.
    newest: Link<K, V>,
    /// Where the next entry goes.
    free: Lock<Free<K, V>>,
    // Entries are owned, and dropped with the table.
    _owns: PhantomData<Entry<K, V>>,
}

type Link<K, V> = AtomicPtr<Entry<K, V>>;

/// One key of an [`Interner`], and what belongs to the key.
pub struct Entry<K, V> {
    key: K,
    value: V,
    /// The next older entry of the same bucket; null at the end.
    next: *mut Self,
    /// The next older entry of all; null at the end.
    older: *mut Self,
    /// An entry is written before it is linked.
    written: Witness,
}

/// The unused rest of the newest chunk.
struct Free<K, V> {
    /// The first entry that was not handed out.
    at: *mut Entry<K, V>,
    /// How many are left from `at` on.
    left: usize,
    /// The newest chunk; each begins with a pointer to the one before it.
    chunk: *mut Chunk<K, V>,
    /// Entries that were handed out.
    count: usize,
}

/// Room for entries, and the way to the chunk before.
struct Chunk<K, V> {
    before: *mut Self,
    entries: [core::mem::MaybeUninit<Entry<K, V>>; CHUNK_ENTRIES],
}

// SAFETY: entries move with the table, and nothing else refers to them once the table is moved.
unsafe impl<K: Send, V: Send> Send for Interner<K, V> {}
// SAFETY: threads share `&K` and `&V` of linked entries (`loom_interner`), and hand keys and values to the table, which may
// be dropped by another thread.
unsafe impl<K: Send + Sync, V: Send + Sync> Sync for Interner<K, V> {}
// SAFETY: the pointers are the table's, and only the lock's holder follows them.
unsafe impl<K: Send, V: Send> Send for Free<K, V> {}
// SAFETY: the key and the value are shared; the links are never written after the entry is linked.
unsafe impl<K: Sync, V: Sync> Sync for Entry<K, V> {}

impl<K: Eq, V> Interner<K, V> {
    /// An empty table with at least `buckets` buckets of one word each; `None` without memory for them.
    ///
    /// The number is rounded up to a power of two. It never changes: a table with ten times as many keys as buckets
    /// compares some ten keys at each call.
    #[must_use]
    pub fn new(buckets: usize) -> Option<Self> {
        let count = buckets.max(1).checked_next_power_of_two()?;
        let layout = Layout::array::<Link<K, V>>(count).ok()?;
        // SAFETY: the layout has at least one word.
        let first = unsafe { System.alloc(layout) }.cast::<Link<K, V>>();
        if first.is_null() {
            return None;
        }
        for index in 0..count {
            // SAFETY: `index` is below the length of the array, which is not read before.
            unsafe { first.wrapping_add(index).write(AtomicPtr::new(ptr::null_mut())) };
        }
        Some(Self {
            buckets: first,
            mask: count - 1,
            newest: AtomicPtr::new(ptr::null_mut()),
            free: Lock::new(Free {
                at: ptr::null_mut(),
                left: 0,
                chunk: ptr::null_mut(),
                count: 0,
            }),
            _owns: PhantomData,
        })
    }

    /// The entry of `key`; `None` if the key was not added yet.
    #[inline]
    #[must_use]
    pub fn find(&self, hash: u64, key: &K) -> Option<&Entry<K, V>> {
        // Acquire: pairs with the Release that links an entry in `add`; older entries of the bucket were linked before it
        // under the same lock, so one Acquire shows them all. See `loom_interner`.
        let acquire = ordering(Site::InternerFind, Ordering::Acquire);
        let newest = self.bucket(hash).load(acquire);
        // SAFETY: (1) the load above.
        unsafe { Self::search(newest, key) }
    }

    /// The entry of `key`, which is added with the value that `make` returns if the key is not there yet; `None` without
    /// memory for it.
    ///
    /// `make` runs at most once, under the table's lock: it must not use the table.
    #[inline]
    pub fn intern(&self, hash: u64, key: K, make: impl FnOnce() -> V) -> Option<&Entry<K, V>> {
        match self.find(hash, &key) {
            Some(entry) => Some(entry),
            None => self.add(hash, key, make),
        }
    }

    #[cold]
    #[inline(never)]
    fn add(&self, hash: u64, key: K, make: impl FnOnce() -> V) -> Option<&Entry<K, V>> {
        let mut free = self.free.lock();
        let bucket = self.bucket(hash);
        // Relaxed: only holders of the lock link entries.
        let newest = bucket.load(Ordering::Relaxed);
        // SAFETY: (1) the lock's Acquire shows what its last holder linked.
        if let Some(entry) = unsafe { Self::search(newest, &key) } {
            return Some(entry);
        }
        let place = free.take()?;
        // Relaxed: only holders of the lock store it.
        let older = self.newest.load(Ordering::Relaxed);
        let entry = Entry { key, value: make(), next: newest, older, written: Witness::new() };
        // SAFETY: `take` returned room for one entry, to this caller alone.
        unsafe { place.write(entry) };
        free.count += 1;
        // Release: pairs with the Acquire of `find`, which thereby reads a written entry. See `loom_interner`.
        bucket.store(place, ordering(Site::InternerLink, Ordering::Release));
        // Release: pairs with the Acquire of `iter`, as above.
        self.newest.store(place, ordering(Site::InternerList, Ordering::Release));
        // SAFETY: written above; an entry lives as long as the table.
        Some(unsafe { &*place })
    }

    /// The entry of `key` among `newest` and the older ones of its bucket.
    ///
    /// # Safety
    ///
    /// 1. `newest` is null, or a linked entry whose contents the caller's thread can see.
    #[inline]
    unsafe fn search<'a>(newest: *mut Entry<K, V>, key: &K) -> Option<&'a Entry<K, V>> {
        let mut next = newest;
        // SAFETY: null, or a linked entry (1), which lives as long as the table; `next` of a linked entry is one, too.
        while let Some(entry) = unsafe { next.as_ref() } {
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
    fn bucket(&self, hash: u64) -> &Link<K, V> {
        #[expect(clippy::cast_possible_truncation, reason = "the mask takes the low bits")]
        let index = hash as usize & self.mask;
        // SAFETY: the mask keeps `index` below the number of buckets.
        let bucket = unsafe { self.buckets.add(index) };
        // SAFETY: every bucket was written by `new`, and lives as long as the table.
        unsafe { &*bucket }
    }

    /// Every entry, newest first; those that are added meanwhile are left out.
    pub fn iter(&self) -> impl Iterator<Item = &Entry<K, V>> {
        // Acquire: pairs with the Release in `add`; see `loom_interner`.
        let newest = self.newest.load(ordering(Site::InternerWalk, Ordering::Acquire));
        // SAFETY: null, or a linked entry, which lives as long as the table.
        let first = unsafe { newest.as_ref() };
        // SAFETY: as above.
        iter::successors(first, |entry| unsafe { entry.older.as_ref() })
            .inspect(|entry| entry.written.see())
    }

    /// How many keys the table has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.free.lock().count
    }

    /// Whether the table has no key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The lock under which keys are added, for handlers of a fork.
    #[must_use]
    pub const fn lock(&self) -> &RawLock {
        self.free.raw()
    }
}

impl<K, V> Entry<K, V> {
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

impl<K, V> Free<K, V> {
    /// Room for one entry; `None` without memory.
    fn take(&mut self) -> Option<*mut Entry<K, V>> {
        if self.left == 0 {
            // SAFETY: a chunk has at least one word.
            let chunk = unsafe { System.alloc(Layout::new::<Chunk<K, V>>()) }.cast::<Chunk<K, V>>();
            if chunk.is_null() {
                return None;
            }
            // SAFETY: fresh memory of a chunk's layout; no reference to uninitialised memory is made.
            let before = unsafe { &raw mut (*chunk).before };
            // SAFETY: as above.
            unsafe { before.write(self.chunk) };
            // SAFETY: as above.
            self.at = unsafe { &raw mut (*chunk).entries }.cast();
            self.left = CHUNK_ENTRIES;
            self.chunk = chunk;
        }
        let place = self.at;
        self.at = self.at.wrapping_add(1);
        self.left -= 1;
        Some(place)
    }
}

impl<K, V> Drop for Interner<K, V> {
    fn drop(&mut self) {
        let mut entry = self.newest.load(Ordering::Relaxed);
        while !entry.is_null() {
            // SAFETY: a linked entry, read before it is dropped.
            let older = unsafe { (*entry).older };
            // SAFETY: `&mut self` says that nobody else refers to it, and the list has each entry once.
            unsafe { entry.drop_in_place() };
            entry = older;
        }
        let mut chunk = self.free.get_mut().chunk;
        while !chunk.is_null() {
            // SAFETY: `take` wrote it.
            let before = unsafe { (*chunk).before };
            // SAFETY: from `System.alloc` with this layout, and its entries were dropped.
            unsafe { System.dealloc(chunk.cast(), Layout::new::<Chunk<K, V>>()) };
            chunk = before;
        }
        for index in 0..=self.mask {
            // SAFETY: within the array.
            let bucket = unsafe { self.buckets.add(index) };
            // SAFETY: written by `new`, and not used again.
            unsafe { bucket.drop_in_place() };
        }
        let layout = Layout::array::<Link<K, V>>(self.mask + 1);
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
