//! Owns `ApartProfiler`: sampled blocks lie where an allocator passes their frees on, so that no other free is looked at.

use std::num::NonZeroU64;
use std::ptr::NonNull;

use malloc_api::{Domain, immortal};
use pymem_sync::RawLock;

use crate::blocks::{Blocks, Sampled};
use crate::profile::Profile;
use crate::sampler::{Countdown, weigh};
use crate::snapshot::Stack;
use crate::source::StackSource;

/// Notes some blocks' stacks: on the average one for each interval of allocated bytes, of calls that do not overlap.
///
/// It serves no calls. Whoever does lets each allocation [pass](Countdown::passes) the countdown, [records](Self::record) those that it
/// does not let pass, and says of those that were recorded when they are [freed](Self::forget) and [moved](Self::moved). So an
/// allocator with pools has its own `free`: recorded blocks lie outside of the pools.
///
/// # Examples
///
/// ```
/// use std::num::NonZeroU64;
///
/// use heap_profile::{ApartProfiler, Countdown, Frame, Location, Options, Profile, StackSource, Walk};
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
/// static COUNTDOWN: Countdown = Countdown::new();
///
/// let profile = Profile::new(Nowhere, Options { serialized: true, ..Options::default() })?;
/// let profiler = ApartProfiler::new(profile, NonZeroU64::new(4096).unwrap(), &COUNTDOWN);
/// let blocks = (0..100_000).map(|_| {
///     let block = LibcMalloc.malloc(100).unwrap();
///     if COUNTDOWN.passes(100) { block } else { profiler.record(Domain::Obj, block, 100, Some) }
/// });
/// let blocks: Vec<_> = blocks.collect();
/// let live = profile.live_bytes();
/// assert!((9_000_000..11_000_000).contains(&live), "of 10,000,000 bytes {live} are seen");
/// for block in blocks {
///     profiler.forget(block);
///     // SAFETY: (1) the block is live and (2) not used afterwards.
///     unsafe { LibcMalloc.free(Some(block)) };
/// }
/// assert_eq!(profile.live_bytes(), 0);
/// # Ok::<(), heap_profile::ProfileError>(())
/// ```
#[derive(Debug)]
pub struct ApartProfiler<S: 'static> {
    profile: &'static Profile<S>,
    interval: NonZeroU64,
    countdown: &'static Countdown,
    blocks: &'static Blocks,
}

impl<S: StackSource> ApartProfiler<S> {
    /// Counts in `profile` what `countdown` does not let pass: one block for each `interval` bytes.
    ///
    /// Aborts, as `Box::new` does, without some 8 KiB of memory.
    #[must_use]
    pub fn new(
        profile: &'static Profile<S>,
        interval: NonZeroU64,
        countdown: &'static Countdown,
    ) -> Self {
        Self { profile, interval, countdown, blocks: immortal::leak(Blocks::new()) }
    }

    /// The lock to hold over a fork, before those of the profile.
    #[must_use]
    pub const fn lock(&self) -> &'static RawLock {
        self.blocks.lock()
    }

    /// The stack that allocated the live block at `block`; `None` where no block that is noted begins.
    #[must_use]
    pub fn traceback_of(&self, block: NonNull<u8>) -> Option<Stack> {
        Some(self.profile.stack_of(self.blocks.site_of(block)?))
    }

    /// Notes `block` of `size` bytes, which the countdown did not let pass, if it is chosen and `apart` moves it where its free is passed
    /// on; where it lies now.
    #[cold]
    pub fn record(
        &self,
        domain: Domain,
        block: NonNull<u8>,
        size: usize,
        apart: impl FnOnce(NonNull<u8>) -> Option<NonNull<u8>>,
    ) -> NonNull<u8> {
        let interval = self.interval.get();
        if !self.countdown.begin(size, interval) {
            return block;
        }
        let amount = weigh(size, interval);
        let Some(site) = self.profile.allocate(domain as u8, size, amount) else { return block };
        let moved = apart(block);
        let unseen = match moved {
            Some(moved) => self.blocks.keep(moved, Sampled { site, amount }),
            None => Some(Sampled { site, amount }),
        };
        self.profile.free_noted(unseen);
        moved.unwrap_or(block)
    }

    /// Counts `block` as freed, if it is noted; before it is.
    #[inline]
    pub fn forget(&self, block: NonNull<u8>) {
        self.profile.free_noted(self.blocks.take(block));
    }

    /// Has `resize` give a block that may be noted another size; what is noted of it ends if that succeeds.
    #[inline]
    pub fn moved(
        &self,
        block: Option<NonNull<u8>>,
        resize: impl FnOnce() -> Option<NonNull<u8>>,
    ) -> Option<NonNull<u8>> {
        let take = |block| self.blocks.take(block);
        self.blocks.moved(block, take, resize, |gone| self.profile.free_noted(gone))
    }
}
