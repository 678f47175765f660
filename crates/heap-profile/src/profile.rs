//! Owns `Profile`: the stacks, the sites and the peak that any number of profilers count into.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

use malloc_api::{Domain, immortal};
use pymem_sync::{Entry, HeldOverFork, Interner};

use crate::counters::{Counters, Overlap, Sum};
use crate::counts::AtPeak;
use crate::origin::{Origin, Origins};
use crate::profile_error::ProfileError;
use crate::site::{SiteEntry, SiteKey, class_bytes, class_of};
use crate::snapshot::{Amount, Site, Snapshot, Stack};
use crate::source::{Location, StackSource};
use crate::stack_table::StackTable;
use crate::stacks::{mix, unrecorded};

/// How a [`Profile`] records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The most frames that are kept of a stack, the innermost ones: 1 to [`MAX_FRAMES`](crate::MAX_FRAMES); 32 unless set.
    pub frames: usize,
    /// Whether calls of the mem and obj domains never overlap, as Python's threads hold the GIL in them; false unless set.
    ///
    /// Counts of calls that overlap all the same may be lost.
    pub serialized: bool,
    /// Buckets of the tables of stacks, some five bytes each; 262,144 unless set.
    pub buckets: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { frames: 32, serialized: false, buckets: 1 << 18 }
    }
}

/// Who allocated what: every distinct stack, with what is live, what was live at the peak, and what was ever allocated.
///
/// A profile lives for ever and serves any number of profilers, one a domain usually. What it keeps comes from the system's
/// allocator: some five bytes a bucket, 20 for each distinct frame of a stack, and 44 for each site.
#[derive(Debug)]
pub struct Profile<S: 'static> {
    stacks: &'static StackTable<S>,
    /// The number of this profile among those of its stacks.
    number: u16,
    /// How many frames are told of one stack.
    frames: usize,
    /// Of the calls of each domain, and of what is reported.
    overlaps: [Overlap; 4],
    /// By the site's number, what its counts have no room for.
    upper: Interner<u32, Upper>,
    origins: Origins,
    recording: AtomicBool,
    live: Live,
    lost: Lost,
}

/// The live bytes of all sites, and the peak.
#[derive(Debug, Default)]
struct Live {
    /// Allocated and freed bytes of each domain, and of all that is reported; apart, as some domains may count without atomic
    /// additions.
    domains: [Counters; 4],
    /// The freed bytes of each at which the next look for a peak is due.
    look_at: [AtomicU64; 4],
    /// The live bytes at the noted peak.
    noted: AtomicU64,
    /// How many peaks were noted, each above the one before. A site notes what it held when it first changes after one.
    peaks: AtomicU32,
}

/// The upper halves of a site's counts, and a peak that needs them.
#[derive(Debug, Default)]
struct Upper {
    halves: Counters,
    peak: Sum,
}

/// Buckets of the table of upper halves.
const UPPER_BUCKETS: usize = 1024;

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
        Self::with_stacks(StackTable::new(source, options.frames, options.buckets)?, options)
    }

    /// As [`new`](Self::new), with the stacks of a table that others use too. Stacks are cut to the table's frames.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn with_stacks(
        stacks: &'static StackTable<S>,
        options: Options,
    ) -> Result<&'static Self, ProfileError> {
        if options.frames == 0 {
            return Err(ProfileError::Frames(0));
        }
        Ok(immortal::leak(Self {
            stacks,
            number: stacks.add_profile()?,
            frames: options.frames,
            overlaps: [0, 1, 2, 3].map(|origin| {
                let is_held = origin == Domain::Mem as u8 || origin == Domain::Obj as u8;
                if options.serialized && is_held { Overlap::Never } else { Overlap::AtAnyTime }
            }),
            upper: Interner::new(UPPER_BUCKETS).ok_or(ProfileError::NoMemory(UPPER_BUCKETS))?,
            origins: Origins::new(),
            recording: AtomicBool::new(true),
            live: Live::default(),
            lost: Lost::default(),
        }))
    }

    /// The stacks of the profile, whose locks are held over a fork beside the profile's own.
    pub const fn stacks(&self) -> &'static StackTable<S> {
        self.stacks
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

    /// What the profile knows now, with names.
    ///
    /// A snapshot that is taken while other threads allocate has each site as it was at some moment of the walk. What the
    /// snapshot itself allocates is not recorded, if the calling thread allocates it from a profiled allocator.
    #[must_use]
    pub fn snapshot(&'static self) -> Snapshot {
        unrecorded(|| {
            self.note_peak();
            let mut names = Names { profile: self, locations: HashMap::new() };
            let mut stacks: HashMap<Vec<u32>, Stack> = HashMap::new();
            let mut sites: HashMap<_, Site> = HashMap::new();
            let mut places = Vec::new();
            for entry in self.sites() {
                let SiteKey { stack, origin, class, .. } = *entry.key();
                // Stacks that differ further out than the limit are one.
                places.clear();
                places.extend(self.places(stack));
                let stack = match stacks.get(&places) {
                    Some(stack) => stack.clone(),
                    None => {
                        let stack: Stack = places.iter().map(|&place| names.of(place)).collect();
                        stacks.entry(places.clone()).or_insert(stack).clone()
                    }
                };
                let key = (stack.as_ptr(), origin, class);
                let site = sites.entry(key).or_insert_with(|| Site {
                    stack,
                    origin: self.origin(origin),
                    class_bytes: class_bytes(class),
                    live: Amount::default(),
                    peak: Amount::default(),
                    total: Amount::default(),
                });
                let [live, peak, total] = self.amounts(entry);
                site.live = site.live.saturating_add(live);
                site.peak = site.peak.saturating_add(peak);
                site.total = site.total.saturating_add(total);
            }
            drop(stacks);
            let mut sites: Vec<Site> = sites.into_values().collect();
            sites.sort_by(|a, b| {
                let order = b.live.cmp(&a.live).then_with(|| a.stack.cmp(&b.stack));
                order.then_with(|| (a.origin, a.class_bytes).cmp(&(b.origin, b.class_bytes)))
            });
            Snapshot { sites, lost: self.lost() }
        })
    }

    /// Counts an allocation of `amount`, of blocks of `size` bytes, for the calling thread's stack; the site, or `None` if
    /// the allocation is not recorded.
    #[inline(always)]
    pub(crate) fn allocate(
        &'static self,
        origin: u8,
        size: usize,
        amount: Amount,
    ) -> Option<&'static SiteEntry> {
        if !self.is_recording() {
            return None;
        }
        let mut captured = self.stacks.stacks().capture(self.stacks.source())?;
        let (stack, profile, class) = (captured.node, self.number, class_of(size));
        let key = SiteKey { stack, profile, origin, class };
        let site = captured.site(key.word(), || self.site_of(key, amount))?;
        let index = Live::index(origin);
        // What is usual takes no more than additions.
        let is_plain = amount.blocks == 1
            && self.overlaps[index] == Overlap::Never
            && !site.value().is_of_peak(self.live.peaks.load(Relaxed))
            && u32::try_from(amount.bytes).is_ok_and(|bytes| site.value().allocate_plainly(bytes));
        if is_plain {
            self.live.domains[index].allocate(amount, Overlap::Never);
        } else {
            self.allocate_at(site, amount);
        }
        Some(site)
    }

    /// Counts an allocation of `amount` at a site.
    #[inline(never)]
    fn allocate_at(&'static self, site: &SiteEntry, amount: Amount) {
        let origin = site.key().origin;
        let overlap = self.overlap(origin);
        self.before_change(site);
        let carry = site.value().allocate(amount, overlap);
        if carry != Amount::default() {
            self.with_upper(site, |upper| upper.halves.allocate(carry, Overlap::AtAnyTime));
        }
        self.live.domains[Live::index(origin)].allocate(amount, overlap);
    }

    /// The site of a key; `None`, and `amount` is lost, without memory for it.
    #[cold]
    fn site_of(&'static self, key: SiteKey, amount: Amount) -> Option<&'static SiteEntry> {
        let site = self.stacks.stacks().site_of(key);
        if site.is_none() {
            self.lost.bytes.fetch_add(amount.bytes, Relaxed);
            self.lost.blocks.fetch_add(amount.blocks, Relaxed);
        }
        site
    }

    /// Has a site note what it holds, if that is what it held at the peak.
    #[inline]
    fn before_change(&'static self, site: &SiteEntry) {
        let peak = self.live.peaks.load(Relaxed);
        if site.value().is_of_peak(peak) {
            self.leave_peak(site, peak);
        }
    }

    #[cold]
    #[inline(never)]
    fn leave_peak(&'static self, site: &SiteEntry, peak: u32) {
        if site.value().leave_peak(peak) {
            let [_, live] = self.sums(site);
            site.value().set_peak(live);
            if matches!(site.value().at_peak(peak), AtPeak::Large) {
                self.with_upper(site, |upper| upper.peak.set(live));
            }
        }
    }

    /// Passes `work` the upper halves of a site; without memory for them they are lost.
    #[cold]
    #[inline(never)]
    fn with_upper<T>(&'static self, site: &SiteEntry, work: impl FnOnce(&Upper) -> T) {
        let number = site.number();
        let upper = self.upper.intern(mix(number as usize), number, Upper::default);
        upper.map(|upper| work(upper.value()));
    }

    /// What has room for everything that a site counts.
    fn upper(&self, site: &SiteEntry) -> Option<&Upper> {
        let number = site.number();
        if self.upper.is_empty() {
            return None;
        }
        self.upper.find(mix(number as usize), &number).map(Entry::value)
    }

    /// What was ever allocated at a site, and is live there.
    ///
    /// Read while other threads count, the two may be of different moments; a difference below zero is zero.
    fn sums(&self, site: &SiteEntry) -> [Amount; 2] {
        let whole = |lower: Amount, of: fn(&Counters) -> Amount| {
            let upper = self.upper(site).map(|upper| of(&upper.halves)).unwrap_or_default();
            let (bytes, blocks) = (upper.bytes << u32::BITS, upper.blocks << u32::BITS);
            lower.saturating_add(Amount { bytes, blocks })
        };
        // Frees first: what they count was allocated before.
        let freed = whole(site.value().freed(), Counters::freed);
        let allocated = whole(site.value().allocated(), Counters::allocated);
        [allocated, allocated.saturating_sub(freed)]
    }

    /// What is live at a site, was live at the peak, and was ever allocated.
    pub(crate) fn amounts(&self, site: &SiteEntry) -> [Amount; 3] {
        let [total, live] = self.sums(site);
        let peak = match site.value().at_peak(self.live.peaks.load(Relaxed)) {
            AtPeak::Unchanged => live,
            AtPeak::Noted(peak) => peak,
            AtPeak::Large => self.upper(site).map(|upper| upper.peak.get()).unwrap_or_default(),
        };
        [live, peak, total]
    }

    /// The site with this number.
    #[inline]
    pub(crate) fn site(&'static self, number: u32) -> Option<&'static SiteEntry> {
        self.stacks.stacks().sites().get(number)
    }

    /// Counts that `amount` of a site is freed.
    #[inline(always)]
    pub(crate) fn free(&'static self, site: &SiteEntry, amount: Amount) {
        let origin = site.key().origin;
        let overlap = self.overlap(origin);
        self.before_change(site);
        let carry = site.value().free(amount, overlap);
        if carry != Amount::default() {
            self.with_upper(site, |upper| upper.halves.free(carry, Overlap::AtAnyTime));
        }
        let index = Live::index(origin);
        let freed = self.live.domains[index].free(amount, overlap);
        if freed >= self.live.look_at[index].load(Relaxed) {
            self.look_for_peak(index, freed);
        }
    }

    /// Counts that `bytes` of one block of a site are freed, where that is no more than additions; `false`, and nothing is counted, where it
    /// is.
    #[inline(always)]
    pub(crate) fn free_plainly(&self, site: &SiteEntry, bytes: u32) -> bool {
        let index = Live::index(site.key().origin);
        let domain = &self.live.domains[index];
        let freed = domain.freed_bytes() + u64::from(bytes);
        let is_plain = self.overlaps[index] == Overlap::Never
            && freed < self.live.look_at[index].load(Relaxed)
            && !site.value().is_of_peak(self.live.peaks.load(Relaxed))
            && site.value().free_plainly(bytes);
        if is_plain {
            domain.free(Amount::block(bytes as usize), Overlap::Never);
        }
        is_plain
    }

    /// Notes the peak if memory is being freed and more is live than at the last noted peak.
    ///
    /// Growth alone never comes here. Between two looks at most 1/128 of what is live is freed in one domain, so that what
    /// is live at a look is at most that much below any peak since the look before; and a peak is noted only when it is
    /// 1/128 above the last noted one, so that sites rarely note what they hold.
    #[cold]
    fn look_for_peak(&self, index: usize, freed: u64) {
        let live = self.live.bytes();
        self.live.look_at[index].store(freed + (live / 128).max(4096), Relaxed);
        self.note_peak_of(live, self.live.noted.load(Relaxed) / 128);
    }

    /// Notes what is live now as the peak, if it is one.
    pub(crate) fn note_peak(&self) {
        self.note_peak_of(self.live.bytes(), 0);
    }

    /// Notes the peak if `live` is more than `margin` above the last noted one.
    fn note_peak_of(&self, live: u64, margin: u64) {
        let noted = self.live.noted.load(Relaxed);
        let is_above = live > noted.saturating_add(margin);
        // One thread of those that see the same peak.
        let note = || self.live.noted.compare_exchange(noted, live, Relaxed, Relaxed);
        if is_above && note().is_ok() {
            self.live.peaks.fetch_add(1, Relaxed);
        }
    }

    /// What could not be recorded.
    pub(crate) fn lost(&self) -> Amount {
        let Lost { bytes, blocks } = &self.lost;
        Amount { bytes: bytes.load(Relaxed), blocks: blocks.load(Relaxed) }
    }

    /// Every site, newest first.
    fn sites(&self) -> impl Iterator<Item = &SiteEntry> {
        let of_this = |site: &&SiteEntry| site.key().profile == self.number;
        self.stacks.stacks().sites().iter().filter(of_this)
    }

    /// The site with this number, if it is one of this profile.
    pub(crate) fn own_site(&'static self, number: u32) -> Option<&'static SiteEntry> {
        self.site(number).filter(|site| site.key().profile == self.number)
    }

    /// How many frames are told of one stack.
    pub(crate) const fn frames(&self) -> usize {
        self.frames
    }

    /// The origin with this number in the keys of this profile's sites.
    pub(crate) fn origin(&self, index: u8) -> Origin {
        self.origins.origin(index)
    }

    /// The number of an origin in the keys of this profile's sites.
    pub(crate) fn origin_index(&self, origin: Origin) -> u8 {
        self.origins.index(origin)
    }

    /// The stack of a site.
    pub(crate) fn stack_of(&'static self, site: &SiteEntry) -> Stack {
        unrecorded(|| {
            let mut names = Names { profile: self, locations: HashMap::new() };
            self.places(site.key().stack).map(|place| names.of(place)).collect()
        })
    }

    /// The places of a stack that are told.
    fn places(&self, stack: u32) -> impl Iterator<Item = u32> {
        self.stacks.stacks().places(stack).take(self.frames)
    }

    #[inline]
    pub(crate) fn overlap(&self, origin: u8) -> Overlap {
        self.overlaps[Live::index(origin)]
    }
}

impl<S: Sync> HeldOverFork for Profile<S> {
    fn hold(&self) {
        self.upper.lock().lock();
    }

    unsafe fn release(&self) {
        // SAFETY: (1) held since `hold` on behalf of this thread (1).
        unsafe { self.upper.lock().unlock() };
    }
}

/// The names of places, each made once.
struct Names<S: 'static> {
    profile: &'static Profile<S>,
    locations: HashMap<u32, Arc<Location>>,
}

impl<S: StackSource> Names<S> {
    fn of(&mut self, place: u32) -> Arc<Location> {
        let Self { profile, locations } = self;
        let table = profile.stacks;
        let locate = || Arc::new(table.source().locate(table.stacks().place(place)));
        locations.entry(place).or_insert_with(locate).clone()
    }
}

impl Live {
    /// Where an origin's bytes are counted.
    #[inline]
    fn index(origin: u8) -> usize {
        usize::from(origin).min(Domain::ALL.len())
    }

    fn bytes(&self) -> u64 {
        self.domains.iter().map(|domain| domain.live().bytes).sum()
    }
}
