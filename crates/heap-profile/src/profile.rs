//! Owns `Profile`: the stacks, the sites and the peak that any number of profilers count into.

use std::collections::HashMap;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use malloc_api::{Domain, immortal};
use pymem_sync::{Entry, HeldOverFork, Interner, RawLock};
use thiserror::Error;

use crate::counters::{Counters, Overlap};
use crate::snapshot::{Amount, Site, Snapshot};
use crate::source::{Location, MAX_FRAMES, StackSource};
use crate::stacks::{NodePtr, Stacks, mix, unrecorded};
use crate::walk::Frame;

/// How a [`Profile`] records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The most frames that are kept of a stack, the innermost ones: 1 to [`MAX_FRAMES`]; 32 unless set.
    pub frames: usize,
    /// Whether calls of the mem and obj domains never overlap, as Python's threads hold the GIL in them; false unless set.
    ///
    /// Counts of calls that overlap all the same may be lost.
    pub serialized: bool,
    /// Buckets of the tables of stacks and of sites, one word each; 65,536 unless set.
    pub buckets: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { frames: 32, serialized: false, buckets: 1 << 16 }
    }
}

/// A profile could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// The number of frames is none that a stack can have.
    #[error("a stack cannot be cut to {0} frames; ask for 1 to {MAX_FRAMES}")]
    Frames(usize),
    /// There is no memory for the tables.
    #[error("no memory for two tables of {0} words; ask for fewer buckets")]
    NoMemory(usize),
}

/// What is counted apart: a stack, a domain and a size class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SiteKey {
    stack: Option<NodePtr>,
    domain: Domain,
    class: u8,
}

/// A site with its counts; lives as long as the profile, which is for ever.
pub(crate) type SiteEntry = Entry<SiteKey, Counters>;

/// Who allocated what: every distinct stack, with what is live, what was live at the peak, and what was ever allocated.
///
/// A profile lives for ever and serves any number of profilers, one a domain usually. What it keeps comes from the system's
/// allocator: 16 bytes a bucket, and 48 to 120 bytes for each distinct frame of a stack and for each site.
#[derive(Debug)]
pub struct Profile<S: 'static> {
    source: S,
    serialized: bool,
    stacks: Stacks,
    sites: Interner<SiteKey, Counters>,
    recording: AtomicBool,
    live: Live,
    lost: Lost,
}

/// The live bytes of all sites, and the peak.
#[derive(Debug, Default)]
struct Live {
    /// Allocated and freed bytes of each domain; apart, as some domains may count without atomic additions.
    domains: [Counters; 3],
    /// The freed bytes of each domain at which the next look for a peak is due.
    look_at: [AtomicU64; 3],
    /// The live bytes when the sites' peaks were noted last.
    noted: AtomicU64,
    /// A thread notes the peak.
    noting: AtomicBool,
}

/// What could not be recorded.
#[derive(Debug, Default)]
struct Lost {
    bytes: AtomicU64,
    blocks: AtomicU64,
}

impl<S: StackSource + 'static> Profile<S> {
    /// A profile that records, moved to memory that is never given back.
    ///
    /// # Errors
    ///
    /// [`ProfileError`]: a number of frames that is none, or no memory for the tables.
    pub fn new(source: S, options: Options) -> Result<&'static Self, ProfileError> {
        if !(1..=MAX_FRAMES).contains(&options.frames) {
            return Err(ProfileError::Frames(options.frames));
        }
        let none = ProfileError::NoMemory(options.buckets);
        Ok(immortal::leak(Self {
            source,
            serialized: options.serialized,
            stacks: Stacks::new(options.frames, options.buckets).ok_or(none)?,
            sites: Interner::new(options.buckets).ok_or(none)?,
            recording: AtomicBool::new(true),
            live: Live::default(),
            lost: Lost::default(),
        }))
    }

    /// Stops recording allocations, or goes on; frees of recorded blocks are counted all the while.
    pub fn set_recording(&self, recording: bool) {
        self.recording.store(recording, Relaxed);
    }

    /// Whether allocations are recorded.
    #[inline]
    #[must_use]
    pub fn is_recording(&self) -> bool {
        self.recording.load(Relaxed)
    }

    /// The live bytes of all recorded blocks.
    #[must_use]
    pub fn live_bytes(&self) -> u64 {
        self.live.bytes()
    }

    /// What the profile knows now.
    ///
    /// A snapshot that is taken while other threads allocate has each site as it was at some moment of the walk. What the
    /// snapshot itself allocates is not recorded, if the calling thread allocates it from a profiled allocator.
    #[must_use]
    pub fn snapshot(&'static self) -> Snapshot {
        unrecorded(|| {
            self.note_peak_of(self.live.bytes(), 0);
            let mut names = Names { source: &self.source, locations: HashMap::new() };
            let mut sites: HashMap<_, Site> = HashMap::new();
            for entry in self.sites.iter() {
                let SiteKey { stack, domain, class } = *entry.key();
                // Stacks that differ further out than the limit are one.
                let frames: Vec<Frame> = self.stacks.frames(stack).collect();
                let site = sites.entry((frames, domain.index(), class)).or_insert_with_key(
                    |(frames, ..)| Site {
                        stack: frames.iter().map(|&frame| names.of(frame)).collect(),
                        domain,
                        class_bytes: class_bytes(class),
                        live: Amount::default(),
                        peak: Amount::default(),
                        total: Amount::default(),
                    },
                );
                let counters = entry.value();
                site.live = site.live.plus(counters.live());
                site.peak = site.peak.plus(counters.peak());
                site.total = site.total.plus(counters.total());
            }
            let mut sites: Vec<Site> = sites.into_values().collect();
            sites.sort_by(|a, b| {
                let order = b.live.cmp(&a.live).then_with(|| a.stack.cmp(&b.stack));
                order.then_with(|| (a.domain, a.class_bytes).cmp(&(b.domain, b.class_bytes)))
            });
            let lost = &self.lost;
            let lost =
                Amount { bytes: lost.bytes.load(Relaxed), blocks: lost.blocks.load(Relaxed) };
            Snapshot { sites, lost }
        })
    }

    /// Counts an allocation of `amount`, of blocks of `size` bytes, for the calling thread's stack; the site, or `None` if
    /// the allocation is not recorded.
    #[inline]
    pub(crate) fn allocate(
        &'static self,
        domain: Domain,
        size: usize,
        amount: Amount,
    ) -> Option<&'static SiteEntry> {
        if !self.is_recording() {
            return None;
        }
        self.stacks.capture(&self.source, |stack| self.count(stack, domain, size, amount))?
    }

    #[inline]
    fn count(
        &'static self,
        stack: Option<NodePtr>,
        domain: Domain,
        size: usize,
        amount: Amount,
    ) -> Option<&'static SiteEntry> {
        let key = SiteKey { stack, domain, class: class_of(size) };
        let hash =
            mix(stack.map_or(0, NodePtr::addr) ^ usize::from(key.class) << 8 ^ domain.index());
        let Some(site) = self.sites.intern(hash, key, Counters::default) else {
            self.lost.bytes.fetch_add(amount.bytes, Relaxed);
            self.lost.blocks.fetch_add(amount.blocks, Relaxed);
            return None;
        };
        let overlap = self.overlap(domain);
        site.value().allocate(amount, overlap);
        self.live.domains[domain.index()].allocate(amount, overlap);
        Some(site)
    }

    /// Counts that `amount` of a site is freed.
    #[inline]
    pub(crate) fn free(&'static self, site: &SiteEntry, amount: Amount) {
        let key = site.key();
        let overlap = self.overlap(key.domain);
        site.value().free(amount, overlap);
        let index = key.domain.index();
        let freed = self.live.domains[index].free(amount, overlap);
        if freed >= self.live.look_at[index].load(Relaxed) {
            self.look_for_peak(index, freed);
        }
    }

    /// Notes the peak if memory is being freed and more is live than at the last noted peak.
    ///
    /// Growth alone never comes here. Between two looks at most 1/128 of what is live is freed in one domain, so that what
    /// is live at a look is at most that much below any peak since the look before; and a peak is noted only when it is
    /// 1/128 above the last noted one, so that the walk over all sites is rare.
    #[cold]
    fn look_for_peak(&self, index: usize, freed: u64) {
        let live = self.live.bytes();
        self.live.look_at[index].store(freed + (live / 128).max(4096), Relaxed);
        self.note_peak_of(live, self.live.noted.load(Relaxed) / 128);
    }

    /// Notes every site's live bytes as its peak if `live` is more than `margin` above the last noted peak.
    fn note_peak_of(&self, live: u64, margin: u64) {
        let noted = &self.live.noted;
        if live > noted.load(Relaxed) + margin && !self.live.noting.swap(true, Relaxed) {
            self.sites.iter().for_each(|entry| entry.value().note_peak());
            noted.store(live, Relaxed);
            self.live.noting.store(false, Relaxed);
        }
    }

    #[inline]
    fn overlap(&self, domain: Domain) -> Overlap {
        match domain {
            Domain::Mem | Domain::Obj if self.serialized => Overlap::Never,
            Domain::Raw | Domain::Mem | Domain::Obj => Overlap::AtAnyTime,
        }
    }
}

impl<S: Sync> HeldOverFork for Profile<S> {
    fn hold(&self) {
        self.locks().into_iter().for_each(RawLock::lock);
    }

    unsafe fn release(&self) {
        // SAFETY: (1) held since `hold` on behalf of this thread (1).
        self.locks().into_iter().rev().for_each(|lock| unsafe { lock.unlock() });
    }
}

impl<S> Profile<S> {
    /// In the order in which they are taken.
    const fn locks(&self) -> [&RawLock; 3] {
        let [nodes, places] = self.stacks.locks();
        [self.sites.lock(), nodes, places]
    }
}

/// The names of places, each made once.
struct Names<'a, S> {
    source: &'a S,
    locations: HashMap<Frame, Location>,
}

impl<S: StackSource> Names<'_, S> {
    fn of(&mut self, place: Frame) -> Location {
        self.locations.entry(place).or_insert_with(|| self.source.locate(place)).clone()
    }
}

impl Live {
    fn bytes(&self) -> u64 {
        self.domains.iter().map(|domain| domain.live().bytes).sum()
    }
}

/// The size class of `size` bytes: one for each 16 bytes up to 512, as in CPython's pools, then four for each power of two.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "at most 31 + 4 * 55")]
fn class_of(size: usize) -> u8 {
    let last = size.saturating_sub(1);
    if last < 512 {
        return (last / 16) as u8;
    }
    let log = last.ilog2();
    (32 + 4 * (log - 9) + (last >> (log - 2)) as u32 % 4) as u8
}

/// The largest size of a class in bytes.
fn class_bytes(class: u8) -> u64 {
    let Some(above) = class.checked_sub(32) else { return (u64::from(class) + 1) * 16 };
    let (log, quarter) = (u32::from(above) / 4 + 9, u64::from(above) % 4);
    (1_u64 << log).saturating_add((quarter + 1) << (log - 2))
}

/// The site at an address that a profiler kept.
///
/// # Safety
///
/// 1. `site` is null, or came from a reference to a site.
#[inline]
pub(crate) unsafe fn site_at(site: *const SiteEntry) -> Option<&'static SiteEntry> {
    // SAFETY: by 1; sites live as long as their profile, which is for ever.
    unsafe { site.as_ref() }
}

/// The address of a site; null for none.
#[inline]
pub(crate) fn address_of(site: Option<&'static SiteEntry>) -> *const SiteEntry {
    site.map_or(ptr::null(), ptr::from_ref)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_holds_the_sizes_up_to_its_largest() {
        for size in (0..10_000).chain([65_535, 65_536, 65_537, 1 << 40, isize::MAX as usize]) {
            let class = class_of(size);
            assert!(size as u64 <= class_bytes(class), "{size} is too large for class {class}");
            let smaller = class.checked_sub(1).map(class_bytes);
            assert!(smaller.is_none_or(|bytes| bytes < size as u64), "{size} is too small");
        }
        let sizes: Vec<u64> = (31..37).map(class_bytes).collect();
        assert_eq!(sizes, [512, 640, 768, 896, 1024, 1280]);
    }
}
