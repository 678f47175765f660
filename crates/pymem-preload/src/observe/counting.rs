//! Owns the counts of a report: calls of each domain, live blocks, and live and peak bytes. A counted record wraps the one
//! that serves; without a request for a report or a limit there is none, and nothing is counted. Leaves the limit, which is
//! one for the three domains together, to `budget.rs`.
//!
//! Sizes are kept out of line, since the blocks are the wrapped record's and other code may free them too. Their table
//! takes its memory from the C library.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::collections::HashMap;

use malloc_api::Malloc;
use pymem_domains::{AllocatorRecord, Domain};
use pymem_sync::{ForkLock, Lock, Rank, hold_over_forks};

use crate::observe::budget;

/// What one domain was asked for.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) malloc: AtomicU64,
    pub(crate) calloc: AtomicU64,
    pub(crate) realloc: AtomicU64,
    pub(crate) free: AtomicU64,
    /// Calls that gave no block.
    pub(crate) failed: AtomicU64,
}

impl Counts {
    const fn new() -> Self {
        Self {
            malloc: AtomicU64::new(0),
            calloc: AtomicU64::new(0),
            realloc: AtomicU64::new(0),
            free: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }
    }
}

/// The live blocks of one domain.
#[derive(Debug, Default)]
struct Live {
    sizes: HashMap<usize, usize>,
    bytes: usize,
    peak_bytes: usize,
}

impl Live {
    fn add(&mut self, block: usize, size: usize) {
        self.bytes += size;
        // The interpreter frees some raw blocks by the C library, which tells nobody.
        let unseen = self.sizes.insert(block, size).unwrap_or(0);
        self.bytes -= unseen;
        budget::give(unseen);
        self.peak_bytes = self.peak_bytes.max(self.bytes);
    }

    /// The size of a block that is no longer live; `None` for a block that is older than the counting.
    fn remove(&mut self, block: usize) -> Option<usize> {
        let size = self.sizes.remove(&block)?;
        self.bytes -= size;
        Some(size)
    }
}

static COUNTS: [Counts; 3] = [const { Counts::new() }; 3];
static LIVE: [Lock<Option<Live>>; 3] = [const { Lock::new(None) }; 3];

fn with_live<T>(domain: Domain, f: impl FnOnce(&mut Live) -> T) -> T {
    f(LIVE[domain.index()].lock().get_or_insert_default())
}

/// What was counted in `domain`.
pub(crate) fn counts(domain: Domain) -> &'static Counts {
    &COUNTS[domain.index()]
}

/// The live blocks of one domain, in numbers. Bytes are those that were requested.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LiveCounts {
    pub(crate) blocks: usize,
    pub(crate) bytes: usize,
    /// The most bytes that were live at a time.
    pub(crate) peak_bytes: usize,
}

/// The live blocks of `domain`.
pub(crate) fn live(domain: Domain) -> LiveCounts {
    with_live(domain, |live| LiveCounts {
        blocks: live.sizes.len(),
        bytes: live.bytes,
        peak_bytes: live.peak_bytes,
    })
}

/// Keeps the counts usable in forked children.
static HELD: ForkLock = ForkLock::new(Rank::Wrapper, &LIVE);

/// The record of `inner` with its calls counted as those of `domain`.
pub(crate) fn counted(domain: Domain, inner: AllocatorRecord) -> AllocatorRecord {
    // Without memory for the handlers a child may find a lock held, as without this call.
    let _ = hold_over_forks(&HELD);
    AllocatorRecord::leak(Counted { domain, inner })
}

struct Counted {
    domain: Domain,
    inner: AllocatorRecord,
}

impl Counted {
    fn count(&self, counter: impl FnOnce(&Counts) -> &AtomicU64) {
        counter(counts(self.domain)).fetch_add(1, Relaxed);
    }

    /// Notes what `call` gives, a block of `size` bytes in place of one of `given`; no call is made when the limit has no
    /// room for them.
    fn note(
        &self,
        given: usize,
        size: usize,
        call: impl FnOnce() -> Option<NonNull<u8>>,
    ) -> Option<NonNull<u8>> {
        let has_room = budget::exchange(given, size);
        let block = if has_room { call() } else { None };
        match block {
            Some(block) => with_live(self.domain, |live| live.add(block.addr().get(), size)),
            None => {
                if has_room {
                    budget::exchange_back(given, size);
                }
                self.count(|counts| &counts.failed);
            }
        }
        block
    }

    /// Takes a block out of the live ones; gives its address and size, `None` for a block that is older than the counting.
    fn forget(&self, block: NonNull<u8>) -> Option<(usize, usize)> {
        let block = block.addr().get();
        Some((block, with_live(self.domain, |live| live.remove(block))?))
    }
}

// SAFETY: each method is the same one of a record, which keeps promises 1-5; what is added allocates from the C library
// and does not unwind.
unsafe impl Malloc for Counted {
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        self.count(|counts| &counts.malloc);
        self.note(0, size, || self.inner.malloc(size))
    }

    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        self.count(|counts| &counts.calloc);
        self.note(0, nelem.saturating_mul(elsize), || self.inner.calloc(nelem, elsize))
    }

    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        self.count(|counts| &counts.realloc);
        // Before the call: afterwards another thread may own the address.
        let old = ptr.and_then(|block| self.forget(block));
        let given = old.map_or(0, |(_, size)| size);
        let block = self.note(given, new_size, || {
            // SAFETY: the caller's duties 1 and 2 are the record's.
            unsafe { self.inner.realloc(ptr, new_size) }
        });
        if let (None, Some((old, size))) = (block, old) {
            with_live(self.domain, |live| live.add(old, size));
        }
        block
    }

    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        self.count(|counts| &counts.free);
        if let Some(block) = ptr {
            budget::give(self.forget(block).map_or(0, |(_, size)| size));
        }
        // SAFETY: the caller's duties 1 and 2 are the record's.
        unsafe { self.inner.free(ptr) }
    }
}
