//! Owns `NotedProfiler`: every block is noted, those of pools beside the pools, so that a free looks nothing up.

use std::hint;
use std::ptr::NonNull;

use malloc_api::{Domain, Malloc};
use pymem_sync::RawLock;

use crate::blocks::Sampled;
use crate::live::DomainBytes;
use crate::notes::{Note, NoteSize, NoteWord, Notes};
use crate::profile::Profile;
use crate::sampled::SampledProfiler;
use crate::site::{
    CLASS_BYTES, NARROW_BYTES, SiteEntry, SiteKey, SiteWord, class_bytes, key_with, narrow_bytes,
};
use crate::snapshot::{Amount, Stack};
use crate::source::StackSource;
use crate::stacks::Captured;
use crate::trail::{Active, Unusual};

/// An allocator that notes for each block which stack allocated it: four bytes a block of a pool, found without a lock or a hash. Other
/// blocks are noted in a table.
///
/// The blocks themselves are those of the allocator below, so that this one may take its place, or leave it, at any time. A copy is the
/// same profiler: it knows the same blocks.
#[derive(Clone, Debug)]
pub struct NotedProfiler<A, S: 'static> {
    notes: &'static Notes,
    /// The number of the keys of the domain's sites, but for the stack and the class.
    keys: SiteWord,
    /// The bytes of the domain.
    live: &'static DomainBytes,
    /// The allocator below, and where its blocks are noted that lie in no pool.
    table: SampledProfiler<A, S>,
}

impl<A: Malloc, S: StackSource> NotedProfiler<A, S> {
    /// Notes the blocks of `inner` in `profile`, as those of `domain`, and those in the pools of `notes` there.
    ///
    /// Aborts, as `Box::new` does, without some 8 KiB of memory.
    pub fn new(
        inner: A,
        profile: &'static Profile<S>,
        domain: Domain,
        notes: &'static Notes,
    ) -> Self {
        let keys = profile.keys_of(domain);
        let live = profile.live_of(domain);
        Self { notes, keys, live, table: SampledProfiler::new(inner, profile, domain, 0) }
    }

    /// The lock to hold over a fork, before those of the profile.
    #[must_use]
    pub const fn lock(&self) -> &'static RawLock {
        self.table.lock()
    }

    /// The stack that allocated the live block at `block`; `None` where no block that is noted begins.
    ///
    /// An address inside a block may be answered with another block's stack.
    #[must_use]
    pub fn traceback_of(&self, block: NonNull<u8>) -> Option<Stack> {
        match self.notes.site_of(block) {
            Some(number) => Some(self.table.profile.stack_of(self.table.profile.site_at(number)?)),
            None => self.table.traceback_of(block),
        }
    }

    /// Notes `block` of `size` bytes beside the pools, or in the table; the block.
    ///
    /// One function for the stack, the counts and the note of what is usual: as three, they have a third more instructions. What is not usual is
    /// gone on with by functions of their own, after which nothing is left to do: kept over a call, what they are given takes registers
    /// that every call would have to save.
    #[inline(always)]
    fn put(&self, block: NonNull<u8>, size: usize) -> Option<NonNull<u8>> {
        match self.table.profile.usual() {
            Ok(captured) => self.put_captured(captured, block, size),
            Err(Unusual::Called) => self.put_in_fresh(block, size),
            // SAFETY: 1: told just now.
            Err(Unusual::Moved(end)) => unsafe { self.put_moved(block, size, end) },
            Err(Unusual::Otherwise) => self.put_apart(block, size),
        }
    }

    /// As [`put`](Self::put), in a call that is fresh, likely.
    #[inline(never)]
    fn put_in_fresh(&self, block: NonNull<u8>, size: usize) -> Option<NonNull<u8>> {
        match self.table.profile.called() {
            Some(captured) => self.put_captured(captured, block, size),
            None => self.put_apart(block, size),
        }
    }

    /// As [`put`](Self::put), in a call that has moved.
    ///
    /// # Safety
    ///
    /// 1. [`Profile::usual`] has just told so of the thread, by this `end`.
    #[inline(never)]
    unsafe fn put_moved(
        &self,
        block: NonNull<u8>,
        size: usize,
        end: NonNull<Active>,
    ) -> Option<NonNull<u8>> {
        // SAFETY: 1: duty 1.
        match unsafe { self.table.profile.moved(end) } {
            Some(captured) => self.put_captured(captured, block, size),
            None => self.put_apart(block, size),
        }
    }

    /// As [`put`](Self::put), of any stack.
    #[inline(never)]
    fn put_apart(&self, block: NonNull<u8>, size: usize) -> Option<NonNull<u8>> {
        match self.table.profile.capture() {
            Some(captured) => self.put_captured(captured, block, size),
            None => told(block),
        }
    }

    /// As [`put`](Self::put), of a stack that was captured.
    #[inline(always)]
    fn put_captured(
        &self,
        captured: Captured<'_>,
        block: NonNull<u8>,
        size: usize,
    ) -> Option<NonNull<u8>> {
        let last = size.wrapping_sub(1);
        if last >= NARROW_BYTES {
            return self.put_for(captured, block, size);
        }
        let (class, bytes) = ((last / CLASS_BYTES) as u8, size as u32);
        let Some(site) = captured.site(key_with(self.keys, captured.node(), class)) else {
            return self.put_for(captured, block, size);
        };
        if site.value().is_of_peak(self.live.plain_peak()) || !site.value().allocate_plainly(bytes)
        {
            return self.put_counted(block, size, site);
        }
        self.live.allocate_plainly(bytes);
        if self.notes.put_plainly(block, bytes, site.number()) {
            return Some(block);
        }
        self.put_note(block, size, site)
    }

    /// As [`put_captured`](Self::put_captured), at a site that the thread does not remember, or of a large block.
    #[inline(never)]
    fn put_for(
        &self,
        captured: Captured<'_>,
        block: NonNull<u8>,
        size: usize,
    ) -> Option<NonNull<u8>> {
        let SampledProfiler { profile, domain, .. } = self.table;
        match profile.allocate_for(captured, domain as u8, size, Amount::block(size)) {
            Some(site) => self.put_note(block, size, site),
            None => told(block),
        }
    }

    /// As [`put`](Self::put), at a site where counting is more than an addition.
    #[inline(never)]
    fn put_counted(
        &self,
        block: NonNull<u8>,
        size: usize,
        site: &'static SiteEntry,
    ) -> Option<NonNull<u8>> {
        self.table.profile.allocate_at(site, Amount::block(size));
        self.put_note(block, size, site)
    }

    /// Notes the site of `block`.
    #[inline(never)]
    fn put_note(
        &self,
        block: NonNull<u8>,
        size: usize,
        site: &'static SiteEntry,
    ) -> Option<NonNull<u8>> {
        if !self.notes.put(block, size, site.number()) {
            self.table.keep(block, Sampled { site, amount: Amount::block(size) });
        }
        told(block)
    }

    /// Takes what is noted of `block`.
    #[inline(always)]
    fn take(&self, block: NonNull<u8>) -> Option<Sampled> {
        match self.notes.take(block) {
            Some(note) => self.read(note),
            None => self.table.take(block),
        }
    }

    #[inline(always)]
    fn read(&self, Note { site, size }: Note) -> Option<Sampled> {
        let site = self.table.profile.site_at(site)?;
        let bytes = match size {
            NoteSize::BelowClass(less) => class_bytes(site.key().class) as usize - less as usize,
            NoteSize::Bytes(bytes) => bytes as usize,
        };
        Some(Sampled { site, amount: Amount::block(bytes) })
    }

    /// As [`put`](Self::put), in a function of its own.
    #[inline(never)]
    fn put_called(&self, block: NonNull<u8>, size: usize) -> Option<NonNull<u8>> {
        self.put(block, size)
    }

    /// Counts that a block with this note is freed, where no more is to be done than a few additions.
    #[inline(always)]
    fn count_plainly(&self, note: NoteWord) -> bool {
        let SampledProfiler { profile, domain, .. } = self.table;
        let Some(site) = note.site().and_then(|site| profile.site_at(site)) else { return false };
        let SiteKey { origin, class, .. } = *site.key();
        if site.value().is_of_peak(self.live.plain_peak()) || origin != domain as u8 {
            return false;
        }
        // Blocks with these notes are of the classes up to 512 bytes.
        let bytes = narrow_bytes(class).wrapping_sub(note.less());
        let is_plain = self.live.frees_plainly(bytes) && site.value().free_plainly(bytes);
        if is_plain {
            self.live.free_plainly(bytes);
        }
        is_plain
    }

    /// Frees a block whose note was taken.
    ///
    /// # Safety
    ///
    /// Those of [`Malloc::free`].
    #[inline(never)]
    unsafe fn free_taken(&self, block: NonNull<u8>, note: NoteWord) {
        let noted = note.alone().and_then(|note| self.read(note));
        self.table.profile.free_noted(noted);
        // SAFETY: the caller's duties 1 and 2.
        unsafe { self.table.inner.free(Some(block)) };
    }

    /// Frees a block, which may be noted.
    ///
    /// # Safety
    ///
    /// Those of [`Malloc::free`].
    #[inline(never)]
    unsafe fn free_apart(&self, block: NonNull<u8>) {
        self.table.profile.free_noted(self.take(block));
        // SAFETY: the caller's duties 1 and 2.
        unsafe { self.table.inner.free(Some(block)) };
    }
}

/// A block as what a function answers by, so that whoever calls the function last goes on with it and keeps nothing: of a function that is
/// seen to return what it was given, the compiler keeps that over a call.
#[inline(always)]
fn told(block: NonNull<u8>) -> Option<NonNull<u8>> {
    hint::black_box(Some(block))
}

// SAFETY: 1 to 5 are those of `inner`, whose blocks are handed out as they are; neither the profile nor the notes unwind or allocate from
// `inner`.
unsafe impl<A: Malloc, S: StackSource> Malloc for NotedProfiler<A, S> {
    #[inline]
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        let block = self.table.inner.malloc(size)?;
        self.put(block, size)
    }

    #[inline]
    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        let block = self.table.inner.calloc(nelem, elsize)?;
        // `inner` would have refused a product that overflows.
        self.put_called(block, nelem.wrapping_mul(elsize))
    }

    #[inline]
    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        // SAFETY: the caller's duties 1 and 2.
        let new = unsafe { self.table.moved(ptr, new_size, |block| self.take(block)) }?;
        self.put_called(new, new_size)
    }

    // A free that has more to do is a function of its own, so that all others save no register and go on below by a jump.
    #[inline]
    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        if let Some(block) = ptr {
            // The note is taken first: kept until all else is asked, it takes registers that would have to be saved.
            let Some(note) = self.notes.take_narrow(block) else {
                // SAFETY: the caller's duties 1 and 2.
                return unsafe { self.free_apart(block) };
            };
            if !self.count_plainly(note) {
                // SAFETY: the caller's duties 1 and 2.
                return unsafe { self.free_taken(block, note) };
            }
        }
        // SAFETY: the caller's duties 1 and 2.
        unsafe { self.table.inner.free(ptr) };
    }
}
