//! Owns `NotedProfiler`: every block is noted, those of pools beside the pools, so that a free looks nothing up.

use std::ptr::NonNull;

use malloc_api::{Domain, Malloc};
use pymem_sync::RawLock;

use crate::blocks::Sampled;
use crate::notes::{Note, NoteSize, NoteWord, Notes};
use crate::profile::Profile;
use crate::sampled::SampledProfiler;
use crate::site::{CLASS_BYTES, NARROW_BYTES, SiteEntry, class_bytes, narrow_bytes};
use crate::snapshot::{Amount, Stack};
use crate::source::StackSource;
use crate::stacks::Captured;

/// An allocator that notes for each block which stack allocated it: four bytes a block of a pool, found without a lock or a hash. Other
/// blocks are noted in a table.
///
/// The blocks themselves are those of the allocator below, so that this one may take its place, or leave it, at any time. A copy is the
/// same profiler: it knows the same blocks.
#[derive(Clone, Debug)]
pub struct NotedProfiler<A, S: 'static> {
    notes: &'static Notes,
    /// The number of the keys of the domain's sites, but for the stack and the class.
    keys: u64,
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
        Self { notes, keys, table: SampledProfiler::new(inner, profile, domain, 0) }
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

    /// Notes `block` of `size` bytes beside the pools, or in the table.
    ///
    /// One function for the stack, the counts and the note of what is usual: as three, they have a third more instructions.
    #[inline(always)]
    fn put(&self, block: NonNull<u8>, size: usize) {
        let SampledProfiler { profile, domain, .. } = self.table;
        let Some(captured) = profile.capture() else { return };
        let last = size.wrapping_sub(1);
        if last < NARROW_BYTES {
            let (class, bytes) = ((last / CLASS_BYTES) as u8, size as u32);
            let Some(site) = profile.site(captured, self.keys, class, bytes) else { return };
            profile.allocate_block(site, domain, bytes);
            if !self.notes.put_plainly(block, bytes, site.number()) {
                self.put_note(block, size, site);
            }
            return;
        }
        self.put_for(captured, block, size);
    }

    /// As [`put`](Self::put), of a stack that was captured.
    #[inline(never)]
    fn put_for(&self, captured: Captured<'_>, block: NonNull<u8>, size: usize) {
        let SampledProfiler { profile, domain, .. } = self.table;
        let site = profile.allocate_for(captured, domain as u8, size, Amount::block(size));
        if let Some(site) = site {
            self.put_note(block, size, site);
        }
    }

    /// Notes the site of `block`.
    #[inline(never)]
    fn put_note(&self, block: NonNull<u8>, size: usize, site: &'static SiteEntry) {
        if !self.notes.put(block, size, site.number()) {
            self.table.keep(block, Sampled { site, amount: Amount::block(size) });
        }
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
    fn put_apart(&self, block: NonNull<u8>, size: usize) {
        self.put(block, size);
    }

    /// Counts that a block with this note is freed, where no more is to be done than a few additions.
    #[inline(always)]
    fn count_plainly(&self, note: NoteWord) -> bool {
        let SampledProfiler { profile, domain, .. } = self.table;
        let Some(site) = note.site().and_then(|site| profile.site_at(site)) else { return false };
        // Blocks with these notes are of the classes up to 512 bytes.
        let bytes = || u64::from(narrow_bytes(site.key().class)).wrapping_sub(note.less().into());
        profile.free_plainly(site, domain, bytes)
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

// SAFETY: 1 to 5 are those of `inner`, whose blocks are handed out as they are; neither the profile nor the notes unwind or allocate from
// `inner`.
unsafe impl<A: Malloc, S: StackSource> Malloc for NotedProfiler<A, S> {
    #[inline]
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        let block = self.table.inner.malloc(size)?;
        self.put(block, size);
        Some(block)
    }

    #[inline]
    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        let block = self.table.inner.calloc(nelem, elsize)?;
        // `inner` would have refused a product that overflows.
        self.put_apart(block, nelem.wrapping_mul(elsize));
        Some(block)
    }

    #[inline]
    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        // SAFETY: the caller's duties 1 and 2.
        let new = unsafe { self.table.moved(ptr, new_size, |block| self.take(block)) }?;
        self.put_apart(new, new_size);
        Some(new)
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
