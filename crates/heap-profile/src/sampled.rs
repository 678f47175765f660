//! Owns `SampledProfiler`: a block in an interval of bytes is noted, and all others cost a subtraction and a look at a filter.

use std::ptr::NonNull;

use malloc_api::{Domain, Malloc, immortal};
use pymem_sync::RawLock;

use crate::blocks::{Blocks, Sampled};
use crate::counters::Overlap;
use crate::profile::Profile;
use crate::sampler::{choose, weigh};
use crate::snapshot::Stack;
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
    pub(crate) inner: A,
    pub(crate) profile: &'static Profile<S>,
    pub(crate) domain: Domain,
    interval: u64,
    blocks: &'static Blocks,
}

impl<A: Malloc, S: StackSource> SampledProfiler<A, S> {
    /// Samples the blocks of `inner` into `profile`, as those of `domain`, one for each `interval` bytes on the average; an
    /// interval of 0 notes every block as what it is.
    ///
    /// Aborts, as `Box::new` does, without some 8 KiB of memory.
    pub fn new(inner: A, profile: &'static Profile<S>, domain: Domain, interval: u64) -> Self {
        Self { inner, profile, domain, interval, blocks: immortal::leak(Blocks::new()) }
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
        let site = self.blocks.site_of(block)?;
        Some(self.profile.stack_of(site))
    }

    /// Notes `block` of `size` bytes, whose bytes the countdown did not pass, if it is chosen.
    #[cold]
    #[inline(never)]
    fn record(&self, block: NonNull<u8>, size: usize) -> NonNull<u8> {
        if self.is_chosen(size) {
            let amount = weigh(size, self.interval);
            if let Some(site) = self.profile.allocate(self.domain as u8, size, amount) {
                self.keep(block, Sampled { site, amount });
            }
        }
        block
    }

    fn is_chosen(&self, size: usize) -> bool {
        // The countdown of every block, and that of a domain whose calls may overlap, never begins.
        match self.profile.overlap(self.domain as u8) {
            Overlap::Never if self.interval > 0 => self.blocks.countdown.begin(size, self.interval),
            _ => choose(size, self.interval),
        }
    }

    /// Notes `block` in the table, and counts as freed what cannot be noted, or was noted at its address and is gone.
    #[cold]
    pub(crate) fn keep(&self, block: NonNull<u8>, sampled: Sampled) {
        self.profile.free_noted(self.blocks.keep(block, sampled));
    }

    /// As [`Malloc::realloc`], of a block of which `take` takes what is noted; nothing is noted of the new one.
    ///
    /// # Safety
    ///
    /// Those of [`Malloc::realloc`].
    #[inline(always)]
    pub(crate) unsafe fn moved(
        &self,
        ptr: Option<NonNull<u8>>,
        new_size: usize,
        take: impl FnOnce(NonNull<u8>) -> Option<Sampled>,
    ) -> Option<NonNull<u8>> {
        // SAFETY: the caller's duties 1 and 2.
        let resize = || unsafe { self.inner.realloc(ptr, new_size) };
        self.blocks.moved(ptr, take, resize, |gone| self.profile.free_noted(gone))
    }

    /// Takes what is noted of `block`.
    #[inline(always)]
    pub(crate) fn take(&self, block: NonNull<u8>) -> Option<Sampled> {
        self.blocks.take(block)
    }

    /// Frees a block that may be noted.
    ///
    /// # Safety
    ///
    /// Those of [`Malloc::free`].
    #[cold]
    #[inline(never)]
    unsafe fn forget(&self, block: NonNull<u8>) {
        self.profile.free_noted(self.blocks.take(block));
        // SAFETY: the caller's duties 1 and 2.
        unsafe { self.inner.free(Some(block)) };
    }

    /// As [`Malloc::malloc`], of bytes that the countdown did not pass.
    #[cold]
    #[inline(never)]
    fn malloc_due(&self, size: usize) -> Option<NonNull<u8>> {
        Some(self.record(self.inner.malloc(size)?, size))
    }
}

// SAFETY: 1 to 5 are those of `inner`, whose blocks are handed out as they are; neither the profile nor the table of sampled
// blocks unwinds or allocates from `inner`.
unsafe impl<A: Malloc, S: StackSource> Malloc for SampledProfiler<A, S> {
    // Whoever comes by calls the allocator below last, so that it is gone on with and not called.
    #[inline]
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        if self.blocks.countdown.passes(size) {
            self.inner.malloc(size)
        } else {
            self.malloc_due(size)
        }
    }

    #[inline]
    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        let block = self.inner.calloc(nelem, elsize)?;
        // `inner` would have refused a product that overflows.
        let size = nelem.wrapping_mul(elsize);
        Some(if self.blocks.countdown.passes(size) { block } else { self.record(block, size) })
    }

    #[inline]
    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        // SAFETY: the caller's duties 1 and 2.
        let new = unsafe { self.moved(ptr, new_size, |block| self.take(block)) }?;
        let passes = self.blocks.countdown.passes(new_size);
        Some(if passes { new } else { self.record(new, new_size) })
    }

    #[inline]
    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        match ptr.filter(|block| self.blocks.may_have(*block)) {
            // SAFETY: the caller's duties 1 and 2.
            Some(block) => unsafe { self.forget(block) },
            // SAFETY: the caller's duties 1 and 2.
            None => unsafe { self.inner.free(ptr) },
        }
    }
}
