//! Owns `Tracker`: memory that no profiled allocator knows of, as whoever has it reports.

use std::collections::hash_map::RandomState;
use std::fmt;

use hashbrown::HashMap;
use malloc_api::{AllocatorAdapter, LibcMalloc};
use pymem_sync::{Lock, RawLock};

use crate::blocks::Sampled;
use crate::origin::Origin;
use crate::profile::Profile;
use crate::sampler::{choose, weigh};
use crate::snapshot::Stack;
use crate::source::StackSource;

/// By the number and the address of a report. Its memory comes from the C library.
type Reported = HashMap<(u32, usize), Sampled, RandomState, AllocatorAdapter<LibcMalloc>>;

/// Counts memory that its owners report, such as the data of arrays, at the stack that reports it: CPython's `PyTraceMalloc_Track` and
/// its kin for a [`Profile`].
///
/// Each owner has a number, CPython's domain of `tracemalloc`; the same address may be reported under several.
///
/// # Examples
///
/// ```
/// use heap_profile::{Frame, Location, Options, Origin, Profile, StackSource, Tracker, Walk};
///
/// struct Main;
///
/// impl StackSource for Main {
///     fn capture(&self, walk: &mut Walk<'_>) {
///         let _ = walk.visit(1, Frame { code: 1, at: 7 });
///     }
///
///     fn locate(&self, frame: Frame) -> Location {
///         Location { function: "main".into(), file: "main.rs".into(), line: frame.at as u32 }
///     }
/// }
///
/// let profile = Profile::new(Main, Options::default())?;
/// let tracker = Tracker::new(profile, 0);
/// tracker.track(389_047, 0x1000, 800);
/// assert_eq!(profile.snapshot().sites[0].origin, Origin::Tracked(389_047));
/// assert_eq!(tracker.traceback_of(389_047, 0x1000).unwrap()[0].line, 7);
/// tracker.untrack(389_047, 0x1000);
/// assert_eq!(profile.live_bytes(), 0);
/// # Ok::<(), heap_profile::ProfileError>(())
/// ```
pub struct Tracker<S: 'static> {
    profile: &'static Profile<S>,
    interval: u64,
    reported: Lock<Reported>,
}

impl<S: StackSource> Tracker<S> {
    /// Counts in `profile`: one report for each `interval` bytes on the average, every one with 0.
    #[must_use]
    pub fn new(profile: &'static Profile<S>, interval: u64) -> Self {
        let allocator = AllocatorAdapter::new(LibcMalloc);
        let reported = Reported::with_hasher_in(RandomState::new(), allocator);
        Self { profile, interval, reported: Lock::new(reported) }
    }

    /// The lock to hold over a fork, before those of the profile.
    #[must_use]
    pub const fn lock(&self) -> &RawLock {
        self.reported.raw()
    }

    /// Counts the `size` bytes at `address` as memory of `owner`; those that were reported at this address before are gone.
    pub fn track(&self, owner: u32, address: usize, size: usize) {
        self.untrack(owner, address);
        if !choose(size, self.interval) {
            return;
        }
        let amount = weigh(size, self.interval);
        let origin = self.profile.origin_index(Origin::Tracked(owner));
        let Some(site) = self.profile.allocate(origin, size, amount) else { return };
        let mut reported = self.reported.lock();
        let gone = match reported.try_reserve(1) {
            Ok(()) => reported.insert((owner, address), Sampled { site, amount }),
            Err(_) => Some(Sampled { site, amount }),
        };
        drop(reported);
        self.profile.free_noted(gone);
    }

    /// Counts what was reported at `address` as freed; does nothing where nothing was.
    pub fn untrack(&self, owner: u32, address: usize) {
        let gone = self.reported.lock().remove(&(owner, address));
        self.profile.free_noted(gone);
    }

    /// The stack that reported the memory at `address`; `None` where nothing was reported, or recorded.
    #[must_use]
    pub fn traceback_of(&self, owner: u32, address: usize) -> Option<Stack> {
        let site = self.reported.lock().get(&(owner, address))?.site;
        Some(self.profile.stack_of(site))
    }
}

impl<S> fmt::Debug for Tracker<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracker").field("interval", &self.interval).finish_non_exhaustive()
    }
}
