//! Owns `Blocks`: the sampled blocks that are live, by address, and a filter that spares all other frees the look.

use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use hashbrown::HashMap;
use malloc_api::{AllocatorAdapter, LibcMalloc};
use pymem_sync::{Lock, RawLock};

use crate::sampler::Countdown;
use crate::site::SiteEntry;
use crate::snapshot::Amount;
use crate::stacks::mix;

/// Counters of the filter: they stay in the processor's first cache.
const FILTER_BYTES: usize = 8192;

/// A sampled block: its site, and what it counts for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sampled {
    pub(crate) site: &'static SiteEntry,
    pub(crate) amount: Amount,
}

/// Live sampled blocks by address. Their memory comes from the C library, never from the profiled allocator.
type Table =
    HashMap<usize, Sampled, BuildHasherDefault<AddressHasher>, AllocatorAdapter<LibcMalloc>>;

/// The sampled blocks that are live, and when the next one is due.
pub(crate) struct Blocks {
    pub(crate) countdown: Countdown,
    /// How many sampled blocks' addresses have each hash; a full counter stays full.
    filter: [AtomicU8; FILTER_BYTES],
    table: Lock<Table>,
}

impl Blocks {
    pub(crate) fn new() -> Self {
        Self {
            countdown: Countdown::default(),
            filter: [const { AtomicU8::new(0) }; FILTER_BYTES],
            table: Lock::new(Table::with_hasher_in(
                BuildHasherDefault::default(),
                AllocatorAdapter::new(LibcMalloc),
            )),
        }
    }

    /// Notes `block`; returns what is to be counted as freed: `sampled` without memory for it, or what was noted at its address, of a block
    /// that was freed behind the profiler's back.
    #[cold]
    pub(crate) fn keep(&self, block: NonNull<u8>, sampled: Sampled) -> Option<Sampled> {
        let mut table = self.table.lock();
        if table.try_reserve(1).is_err() {
            return Some(sampled);
        }
        let unseen = table.insert(block.addr().get(), sampled);
        if unseen.is_none() {
            let counter = self.counter(block);
            // Relaxed: the lock orders the writers; for readers see `may_have`.
            counter.store(counter.load(Relaxed).saturating_add(1), Relaxed);
        }
        unseen
    }

    /// Has `resize` give a block another size; `free` gets what `take` finds noted of the block if that succeeds.
    #[inline]
    pub(crate) fn moved(
        &self,
        block: Option<NonNull<u8>>,
        take: impl FnOnce(NonNull<u8>) -> Option<Sampled>,
        resize: impl FnOnce() -> Option<NonNull<u8>>,
        free: impl FnOnce(Option<Sampled>),
    ) -> Option<NonNull<u8>> {
        // Before the call: as soon as the allocator has the old block back, another thread may get its address.
        let old = block.and_then(|block| Some((block, take(block)?)));
        let new = resize();
        match (old, new) {
            (Some((_, sampled)), Some(_)) => free(Some(sampled)),
            // The old block lives on.
            (Some((block, sampled)), None) => free(self.keep(block, sampled)),
            (None, _) => {}
        }
        new
    }

    /// Takes `block` out, if it was sampled.
    #[inline]
    pub(crate) fn take(&self, block: NonNull<u8>) -> Option<Sampled> {
        if self.may_have(block) { self.remove(block) } else { None }
    }

    /// Whether `block` may have been sampled.
    #[inline(always)]
    pub(crate) fn may_have(&self, block: NonNull<u8>) -> bool {
        // Relaxed: whoever frees a block has it from the thread that allocated it, in an order that the program makes, or
        // the free itself would be a race; that thread's `insert` came before.
        self.counter(block).load(Relaxed) != 0
    }

    /// The site of `block`, if it was sampled.
    pub(crate) fn site_of(&self, block: NonNull<u8>) -> Option<&'static SiteEntry> {
        Some(self.table.lock().get(&block.addr().get())?.site)
    }

    #[cold]
    fn remove(&self, block: NonNull<u8>) -> Option<Sampled> {
        let mut table = self.table.lock();
        let sampled = table.remove(&block.addr().get())?;
        let counter = self.counter(block);
        let count = counter.load(Relaxed);
        if count != u8::MAX {
            counter.store(count - 1, Relaxed);
        }
        Some(sampled)
    }

    #[inline]
    fn counter(&self, block: NonNull<u8>) -> &AtomicU8 {
        // Blocks are 16 bytes apart at least.
        &self.filter[(block.addr().get() >> 4) % FILTER_BYTES]
    }

    /// The lock to hold over a fork.
    pub(crate) const fn lock(&self) -> &RawLock {
        self.table.raw()
    }
}

impl fmt::Debug for Blocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blocks").field("live", &self.table.lock().len()).finish()
    }
}

/// Hashes one address.
#[derive(Debug, Default)]
pub(crate) struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_usize(usize::from(byte));
        }
    }

    fn write_usize(&mut self, word: usize) {
        // The table takes the position from the low bits and a tag from the high ones.
        self.0 = mix(word ^ self.0.rotate_left(5) as usize);
    }
}
