//! Owns `SampledProfiler`: a block in an interval of bytes is noted, and all others cost a subtraction and a look at a filter.

use std::ptr::NonNull;

use malloc_api::{Domain, Malloc, immortal};
use pymem_sync::RawLock;

use crate::blocks::{Blocks, Sampled};
use crate::notes::{Note, NoteSize, Notes};
use crate::profile::Profile;
use crate::sampler::{choose, weigh};
use crate::site::class_bytes;
use crate::snapshot::{Amount, Stack};
use crate::source::StackSource;

/// An allocator that notes some blocks' stacks: on the average one for each interval of allocated bytes.
///
/// The blocks themselves are those of the allocator below, so that this one may take its place, or leave it, at any time. What
/// a snapshot says is an estimate: a stack that holds `n` intervals of bytes is right to about one part in the square root of `n`.
/// A copy is the same profiler: it knows the same blocks.
///
/// # Examples
///
/// ```
/// use heap_profile::{Frame, Location, Options, Profile, SampledProfiler, StackSource, Walk};
/// use malloc_api::{Domain, LibcMalloc, Malloc};
///
/// struct Nowhere;
///
/// impl StackSource for Nowhere {
///     fn capture(&self, _: &mut Walk<'_>) {}
///
///     fn locate(&self, _: Frame) -> Location {
///         Location::default()
///     }
/// }
///
/// let profile = Profile::new(Nowhere, Options::default())?;
/// let heap = SampledProfiler::new(LibcMalloc, profile, Domain::Raw, 4096);
/// let blocks: Vec<_> = (0..100_000).map(|_| heap.malloc(100)).collect();
/// let live = profile.live_bytes();
/// assert!((9_000_000..11_000_000).contains(&live), "of 10,000,000 bytes {live} are seen");
/// // SAFETY: (1) the blocks are live and (2) not used afterwards.
/// blocks.into_iter().for_each(|block| unsafe { heap.free(block) });
/// assert_eq!(profile.live_bytes(), 0);
/// # Ok::<(), heap_profile::ProfileError>(())
/// ```
#[derive(Clone, Debug)]
pub struct SampledProfiler<A, S: 'static> {
    inner: A,
    profile: &'static Profile<S>,
    domain: Domain,
    interval: u64,
    blocks: &'static Blocks,
    /// Where an exact profile notes the blocks of pools.
    notes: Option<&'static Notes>,
}

impl<A: Malloc, S: StackSource> SampledProfiler<A, S> {
    /// Samples the blocks of `inner` into `profile`, as those of `domain`, one for each `interval` bytes on the average; an
    /// interval of 0 notes every block as what it is.
    ///
    /// Aborts, as `Box::new` does, without some 8 KiB of memory.
    pub fn new(inner: A, profile: &'static Profile<S>, domain: Domain, interval: u64) -> Self {
        let blocks = immortal::leak(Blocks::new());
        Self { inner, profile, domain, interval, blocks, notes: None }
    }

    /// Notes every block, as an interval of 0 does, and those in the pools of `notes` there: four bytes a block, found without a lock or a
    /// hash.
    pub fn with_notes(
        inner: A,
        profile: &'static Profile<S>,
        domain: Domain,
        notes: &'static Notes,
    ) -> Self {
        Self { notes: Some(notes), ..Self::new(inner, profile, domain, 0) }
    }

    /// The lock to hold over a fork, before those of the profile.
    #[must_use]
    pub const fn lock(&self) -> &'static RawLock {
        self.blocks.lock()
    }

    /// The stack that allocated the live block at `block`; `None` where no block that is noted begins.
    ///
    /// An address inside a block may be answered with another block's stack.
    #[must_use]
    pub fn traceback_of(&self, block: NonNull<u8>) -> Option<Stack> {
        let noted = self.notes.and_then(|notes| notes.site_of(block));
        let site = match noted {
            Some(number) => self.profile.site(number)?,
            None => self.blocks.site_of(block)?,
        };
        Some(self.profile.stack_of(site))
    }

    /// Notes `block` of `size` bytes, if it is chosen.
    #[inline]
    fn record(&self, block: NonNull<u8>, size: usize) {
        match self.notes {
            Some(notes) => self.put(notes, block, size),
            None if choose(size, self.interval) => self.note(block, size),
            None => {}
        }
    }

    /// Notes `block` of `size` bytes beside the pools, or in the table.
    ///
    /// One function for the stack, the counts and the note: as three, they have a third more instructions.
    #[inline(never)]
    fn put(&self, notes: &Notes, block: NonNull<u8>, size: usize) {
        let amount = Amount::block(size);
        let Some(site) = self.profile.allocate(self.domain as u8, size, amount) else { return };
        if !notes.put(block, size, site.number()) {
            self.keep(block, Sampled { site, amount });
        }
    }

    #[cold]
    fn note(&self, block: NonNull<u8>, size: usize) {
        let amount = weigh(size, self.interval);
        let Some(site) = self.profile.allocate(self.domain as u8, size, amount) else { return };
        self.keep(block, Sampled { site, amount });
    }

    /// Notes `block` in the table, and counts as freed what cannot be noted, or was noted at its address and is gone.
    #[cold]
    fn keep(&self, block: NonNull<u8>, sampled: Sampled) {
        if let Ok(Some(gone)) | Err(gone) = self.blocks.insert(block, sampled) {
            self.profile.free(gone.site, gone.amount);
        }
    }

    /// Takes what is noted of `block`.
    #[inline(always)]
    fn take(&self, block: NonNull<u8>) -> Option<Sampled> {
        match self.notes.and_then(|notes| notes.take(block)) {
            Some(note) => self.read(note),
            None => self.blocks.take(block),
        }
    }

    #[inline(always)]
    fn read(&self, Note { site, size }: Note) -> Option<Sampled> {
        let site = self.profile.site(site)?;
        let bytes = match size {
            NoteSize::BelowClass(less) => class_bytes(site.key().class) as usize - less as usize,
            NoteSize::Bytes(bytes) => bytes as usize,
        };
        Some(Sampled { site, amount: Amount::block(bytes) })
    }

    /// Counts that `block` is freed, if it is noted.
    #[inline]
    fn forget(&self, block: NonNull<u8>) {
        if self.notes.is_some() {
            self.forget_noted(block);
        } else if let Some(sampled) = self.blocks.take(block) {
            self.forget_sampled(sampled);
        }
    }

    #[cold]
    fn forget_sampled(&self, sampled: Sampled) {
        self.profile.free(sampled.site, sampled.amount);
    }

    #[inline(never)]
    fn forget_noted(&self, block: NonNull<u8>) {
        if let Some(sampled) = self.take(block) {
            self.profile.free(sampled.site, sampled.amount);
        }
    }
}

// SAFETY: 1 to 5 are those of `inner`, whose blocks are handed out as they are; neither the profile nor the table of sampled
// blocks unwinds or allocates from `inner`.
unsafe impl<A: Malloc, S: StackSource> Malloc for SampledProfiler<A, S> {
    #[inline]
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        let block = self.inner.malloc(size)?;
        self.record(block, size);
        Some(block)
    }

    #[inline]
    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        let block = self.inner.calloc(nelem, elsize)?;
        // `inner` would have refused a product that overflows.
        self.record(block, nelem.wrapping_mul(elsize));
        Some(block)
    }

    #[inline]
    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        // Before the call: as soon as `inner` has the old block back, another thread may get its address.
        let old = ptr.and_then(|block| Some((block, self.take(block)?)));
        // SAFETY: the caller's duties 1 and 2.
        let new = unsafe { self.inner.realloc(ptr, new_size) };
        match (old, new) {
            (Some((_, sampled)), Some(_)) => self.profile.free(sampled.site, sampled.amount),
            // The old block lives on.
            (Some((block, sampled)), None) => self.keep(block, sampled),
            (None, _) => {}
        }
        let new = new?;
        self.record(new, new_size);
        Some(new)
    }

    #[inline]
    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        let Some(block) = ptr else { return };
        self.forget(block);
        // SAFETY: the caller's duties 1 and 2.
        unsafe { self.inner.free(Some(block)) };
    }
}
