//! Owns the pool of guarded blocks: a block alone on its pages, with a page that faults on either side of them.
//!
//! ```text
//!   | no access | data pages (RW while live) | no access | data pages | no access | ...
//!               |FD FD FD ... FD|block|FD FD|              right-aligned: up to 15 bytes short of the end
//!               |block|FD FD FD ...      FD|               left-aligned: an underrun faults at once
//! ```
//!
//! A freed slot faults on any access until it is reused; slots are reused in the order of their frees. The block has no
//! header and no tail: what they would say is in the slot's record. The rest of its pages is FORBIDDENBYTE and checked
//! when it comes back. Leaves which slots are free to `slots.rs`, whose turn it is to `countdown.rs`,
//! when to ask to `sampler.rs`, and the signal to `fault.rs`.

use core::fmt::Write as _;
use core::ptr::{self, NonNull};

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed};

use malloc_api::{Domain, MIN_ALIGN, page_bytes};
use pymem_sync::{HeldOverFork, Lock};

use crate::checks::registry;
use crate::guard::countdown::random;
use crate::guard::slots::{FreeSlots, GROUP_SLOTS};
use crate::os::mapping::{MappedSlice, Mapping, Zeroed};
use crate::pattern::{CLEANBYTE, FORBIDDENBYTE, first_other};
use crate::report::handler::Stderr;
use crate::report::violation::ViolationKind;
use crate::sites::site::Site;

/// Most slots of a pool: address space, not memory; only live blocks have any.
const MOST_SLOTS: usize = 1 << 17;
/// Fewest slots of a pool that is worth its trouble.
const LEAST_SLOTS: usize = 64;
/// Largest block in bytes that is guarded.
pub(crate) const MAX_GUARDED: usize = 16 << 10;

static POOL: OnceLock<Option<Pool>> = OnceLock::new();
pub(crate) struct Pool {
    pages: Mapping,
    page: usize,
    /// Bytes from one slot's first guard page to the next one's.
    stride: usize,
    slots: MappedSlice<Slot>,
    free: Lock<FreeSlots>,
    /// Blocks that were not guarded though it was their turn.
    passed_over: AtomicUsize,
}

/// What is known of a slot's block. Written by the thread that allocates or frees it; read by whoever is handed the
/// pointer, and by the fault handler, which takes what it finds.
struct Slot {
    /// Address of the block; 0 if there never was one.
    block: AtomicUsize,
    size: AtomicUsize,
    domain: AtomicU32,
    host: AtomicU32,
    sampler: AtomicU32,
    live: AtomicBool,
    /// Whether the block was there when leaks were last said to begin.
    baseline: AtomicBool,
    allocated: AtomicU32,
    freed: AtomicU32,
}

// SAFETY: 1: atomics of integers and a `bool`.
unsafe impl Zeroed for Slot {}

/// A guarded block as its slot describes it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guarded {
    pub(crate) block: usize,
    pub(crate) size: usize,
    pub(crate) domain: Domain,
    pub(crate) live: bool,
    pub(crate) allocated: Option<Site>,
    pub(crate) freed: Option<Site>,
    slot: usize,
    /// Whom a fault is reported to.
    pub(crate) host: usize,
    /// The number of the sampler whose block it is.
    pub(crate) sampler: u32,
}

impl Guarded {
    /// Whether `address` is inside of this live block, and not its start.
    pub(crate) fn encloses(&self, address: usize) -> bool {
        self.live && self.block < address && address < self.block + self.size
    }
}

impl Slot {
    fn read(&self, slot: usize) -> Option<Guarded> {
        let block = self.block.load(Relaxed);
        if block == 0 {
            return None;
        }
        Some(Guarded {
            block,
            size: self.size.load(Relaxed),
            domain: Domain::from_letter(self.domain.load(Relaxed) as u8)?,
            live: self.live.load(Relaxed),
            allocated: Site::from_bits(self.allocated.load(Relaxed)),
            freed: Site::from_bits(self.freed.load(Relaxed)),
            slot,
            host: self.host.load(Relaxed) as usize,
            sampler: self.sampler.load(Relaxed),
        })
    }
}

impl Pool {
    /// A pool of `slots` slots, or of fewer where the system has less address space.
    fn new(slots: usize) -> Option<Self> {
        let page = page_bytes();
        let stride = MAX_GUARDED.next_multiple_of(page) + page;
        let mut count = slots.clamp(LEAST_SLOTS, MOST_SLOTS).next_multiple_of(GROUP_SLOTS);
        let pages = loop {
            match Mapping::reserved(stride * count + page) {
                Some(pages) => break pages,
                None if count > LEAST_SLOTS => count = (count / 2).next_multiple_of(GROUP_SLOTS),
                None => return None,
            }
        };
        unify(&pages);
        let free = FreeSlots::new(count)?;
        let slots = MappedSlice::new(count)?;
        Some(Self {
            pages,
            page,
            stride,
            slots,
            free: Lock::new(free),
            passed_over: AtomicUsize::new(0),
        })
    }

    /// A slot for a block whose turn it is.
    fn take(&self) -> Option<usize> {
        let mut free = self.free.lock();
        if let Some(group) = free.group_to_retire() {
            // Newer blocks may have guard pages instead.
            if self.protect_group(group, libc::PROT_READ | libc::PROT_WRITE) {
                free.retire(group);
            }
        }
        let slot = free.take();
        drop(free);
        if slot.is_none() && self.passed_over.fetch_add(1, Relaxed) == 0 {
            let mut err = Stderr::new();
            // Ignore write errors: there is nowhere to report them.
            let _ = writeln!(
                err,
                "memdebug: long-lived blocks fill the {} slots of `guard`: fewer blocks are guarded from now on; \
                 ask for more with guard=1/N:SLOTS, or for fewer blocks with a larger N.",
                self.slots.len()
            );
        }
        slot
    }

    /// Takes the slot of a freed block back.
    fn give(&self, slot: usize) {
        let mut free = self.free.lock();
        if let Some(group) = free.give(slot) {
            // Under the lock: nobody has a block in the group before it is closed. Pages that stay open are no guard, but serve.
            self.protect_group(group, libc::PROT_NONE);
        }
    }

    /// Protects all pages of a group, but for the guard pages at its ends, which are its neighbours' too.
    fn protect_group(&self, group: usize, protection: libc::c_int) -> bool {
        let start = self.data(group * GROUP_SLOTS);
        self.protect(start, self.stride * GROUP_SLOTS - self.page, protection)
    }

    /// The slot whose data pages or whose left guard page `address` lies in.
    fn slot_at(&self, address: usize) -> Option<usize> {
        let offset = address.wrapping_sub(self.pages.start().addr().get());
        (offset < self.pages.bytes()).then(|| (offset / self.stride).min(self.slots.len() - 1))
    }

    /// First data byte of a slot.
    fn data(&self, slot: usize) -> *mut u8 {
        self.pages.start().as_ptr().wrapping_add(slot * self.stride + self.page)
    }

    /// Pages of the block, as the offset of the first and the count of bytes.
    fn extent(&self, block: usize, size: usize, slot: usize) -> (usize, usize) {
        let data = self.data(slot).addr();
        let start = (block - data) / self.page * self.page;
        let end = (block - data + size).max(start + 1).next_multiple_of(self.page);
        (start, end - start)
    }

    fn protect(&self, start: *mut u8, bytes: usize, protection: libc::c_int) -> bool {
        // SAFETY: whole pages of the pool that belong to one slot, which the caller has to itself.
        unsafe { libc::mprotect(start.cast(), bytes, protection) == 0 }
    }
}

/// Lets the kernel keep neighbouring pages as one mapping whenever they have the same protection: pages that were first
/// touched apart would stay apart for ever.
fn unify(pages: &Mapping) {
    let start = pages.start().as_ptr();
    let protect = |protection| {
        // SAFETY: a mapping that nobody uses yet.
        unsafe { libc::mprotect(start.cast(), pages.bytes(), protection) == 0 }
    };
    if protect(libc::PROT_READ | libc::PROT_WRITE) {
        // SAFETY: the first byte, writable now.
        unsafe { start.write_volatile(1) };
        // SAFETY: a page that nobody uses.
        unsafe { libc::madvise(start.cast(), page_bytes(), libc::MADV_DONTNEED) };
        protect(libc::PROT_NONE);
    }
}

/// What the guard pages of a process cover.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct GuardCoverage {
    /// Slots in all.
    pub slots: usize,
    /// Live blocks between pages that fault.
    pub guarded: usize,
    /// Slots of groups of long-lived blocks whose guard pages serve others now, until the last of these blocks is freed.
    pub retired: usize,
    /// Blocks that got no guard pages though it was their turn.
    pub passed_over: usize,
}

impl GuardCoverage {
    /// What is covered now; all zero before guard pages are switched on.
    #[must_use]
    pub fn now() -> Self {
        pool().map_or_else(Self::default, |pool| {
            let free = pool.free.lock();
            Self {
                slots: pool.slots.len(),
                guarded: free.guarded,
                retired: free.retired,
                passed_over: pool.passed_over.load(Relaxed),
            }
        })
    }
}

fn pool() -> Option<&'static Pool> {
    POOL.get()?.as_ref()
}

/// Makes the pool, once; `false` if the system has no address space for it.
pub(crate) fn set_up(slots: usize) -> bool {
    let Some(pool) = POOL.get_or_init(|| Pool::new(slots)) else {
        return false;
    };
    START.store(pool.pages.start().addr().get(), Relaxed);
    BYTES.store(pool.pages.bytes(), Relaxed);
    true
}

/// Whether the pool's lock is held.
#[cfg(test)]
pub(crate) fn is_locked() -> bool {
    pool().is_some_and(|pool| pool.free.raw().is_locked())
}

/// The pool's lock, for a fork: nobody waits for another lock while holding it. `None` before the pool is made.
pub(crate) fn fork_lock() -> Option<&'static dyn HeldOverFork> {
    pool().map(|pool| &pool.free as &dyn HeldOverFork)
}

/// The pool's first address, and its bytes: 0 before it is made. Written once, while nobody has a block of it.
static START: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicUsize = AtomicUsize::new(0);

/// The pool's first address and its bytes.
pub(crate) fn range() -> (usize, usize) {
    (START.load(Relaxed), BYTES.load(Relaxed))
}

/// Whether `address` is in the pool.
#[inline(always)]
pub(crate) fn contains(address: usize) -> bool {
    address.wrapping_sub(START.load(Relaxed)) < BYTES.load(Relaxed)
}

/// A guarded block of `size` bytes, clean or zero; `None` if it is too large or no slot is free.
pub(crate) fn malloc(
    size: usize,
    domain: Domain,
    zero: bool,
    (host, sampler): (u32, u32),
    allocated: Option<Site>,
) -> Option<NonNull<u8>> {
    let pool = pool()?;
    if size > MAX_GUARDED {
        return None;
    }
    let slot = pool.take()?;
    let data = pool.data(slot);
    let whole = pool.stride - pool.page;
    let bytes = size.max(1).next_multiple_of(pool.page);
    let right = random() & 1 == 1;
    // A block of no bytes still has an address inside its pages.
    let offset = if right { (whole - size.max(1)) & !(MIN_ALIGN - 1) } else { 0 };
    let start = data.wrapping_add(offset / pool.page * pool.page);
    if !pool.protect(start, bytes, libc::PROT_READ | libc::PROT_WRITE) {
        pool.give(slot);
        pool.passed_over.fetch_add(1, Relaxed);
        return None;
    }
    let block = data.wrapping_add(offset);
    // SAFETY: the slot's pages, writable now.
    unsafe { ptr::write_bytes(start, FORBIDDENBYTE, bytes) };
    // SAFETY: inside them.
    unsafe { ptr::write_bytes(block, if zero { 0 } else { CLEANBYTE }, size) };
    let record = &pool.slots[slot];
    record.block.store(block.addr(), Relaxed);
    record.size.store(size, Relaxed);
    record.domain.store(u32::from(domain.letter()), Relaxed);
    record.host.store(host, Relaxed);
    record.sampler.store(sampler, Relaxed);
    record.allocated.store(Site::to_bits(allocated), Relaxed);
    record.freed.store(0, Relaxed);
    record.baseline.store(registry::program_is_over(), Relaxed);
    record.live.store(true, Relaxed);
    NonNull::new(block)
}

/// The block of the slot that `address` lies in.
pub(crate) fn at(address: usize) -> Option<Guarded> {
    let pool = pool()?;
    let slot = pool.slot_at(address)?;
    pool.slots[slot].read(slot)
}

/// Why the live, guarded block at `p` must not be freed or resized by `domain`.
pub(crate) fn check(p: usize, guarded: Option<&Guarded>, domain: Domain) -> Option<ViolationKind> {
    let Some(guarded) = guarded else {
        return Some(ViolationKind::ForeignPointer);
    };
    if p != guarded.block {
        return Some(if guarded.encloses(p) {
            ViolationKind::InteriorPointer { block: guarded.block, size: guarded.size }
        } else {
            ViolationKind::ForeignPointer
        });
    }
    if !guarded.live {
        return Some(ViolationKind::DoubleFree);
    }
    if guarded.domain != domain {
        return Some(ViolationKind::WrongDomain { allocated: guarded.domain });
    }
    let pool = pool()?;
    let (start, bytes) = pool.extent(guarded.block, guarded.size, guarded.slot);
    let start = pool.data(guarded.slot).wrapping_add(start);
    // SAFETY: the pages of a live slot.
    let pages = unsafe { core::slice::from_raw_parts(start, bytes) };
    let (before, rest) = pages.split_at(guarded.block - start.addr());
    if first_other(before, FORBIDDENBYTE).is_some() {
        return Some(ViolationKind::LeadingPad);
    }
    first_other(&rest[guarded.size..], FORBIDDENBYTE).map(|_| ViolationKind::TrailingPad)
}

/// Frees a checked block: its pages fault from now on. `false` if another thread has freed it since it was checked.
pub(crate) fn free(guarded: &Guarded, freed: Option<Site>) -> bool {
    let Some(pool) = pool() else {
        return false;
    };
    let record = &pool.slots[guarded.slot];
    if !record.live.swap(false, Relaxed) {
        return false;
    }
    record.freed.store(Site::to_bits(freed), Relaxed);
    let (start, bytes) = pool.extent(guarded.block, guarded.size, guarded.slot);
    let start = pool.data(guarded.slot).wrapping_add(start);
    // SAFETY: the pages of a slot that nobody may use any more.
    unsafe { libc::madvise(start.cast(), bytes, libc::MADV_DONTNEED) };
    // The pages of a retired group stay one mapping. Those that cannot be protected are no guard, but serve the next block.
    if !pool.free.lock().is_retired(guarded.slot) {
        pool.protect(start, bytes, libc::PROT_NONE);
    }
    pool.give(guarded.slot);
    true
}

/// Makes every guarded block that is live now part of the baseline.
pub(crate) fn set_baseline() {
    if let Some(pool) = pool() {
        pool.slots.iter().for_each(|slot| slot.baseline.store(true, Relaxed));
    }
}

/// Calls `f` with every live guarded block that is not part of the baseline.
pub(crate) fn for_each(mut f: impl FnMut(Guarded)) {
    if let Some(pool) = pool() {
        let newer = |slot: &&Slot| !slot.baseline.load(Relaxed);
        let slots = pool.slots.iter().enumerate().filter(|(_, slot)| newer(slot));
        let blocks = slots.filter_map(|(index, slot)| slot.read(index));
        blocks.filter(|guarded| guarded.live).for_each(&mut f);
    }
}

/// The block that an access to `address` most likely meant: of the slots on both sides of a guard page the one whose block
/// is nearer.
pub(crate) fn nearest(address: usize) -> Option<Guarded> {
    let pool = pool()?;
    let right = pool.slot_at(address)?;
    let offset = address - pool.pages.start().addr().get();
    let on_guard_page =
        offset % pool.stride < pool.page || offset / pool.stride >= pool.slots.len();
    let left = right.checked_sub(1).filter(|_| on_guard_page);
    let distance = |g: &Guarded| {
        if address < g.block { g.block - address } else { address.saturating_sub(g.block + g.size) }
    };
    [Some(right), left]
        .into_iter()
        .flatten()
        .filter_map(|slot| pool.slots[slot].read(slot))
        .min_by_key(|g| (!g.live, distance(g)))
}
