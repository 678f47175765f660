//! Owns `Profile`: the stacks, the sites and the peak that any number of profilers count into.

use std::collections::HashMap;
use std::num::NonZeroU16;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use malloc_api::{Domain, immortal};
use pymem_sync::{Entry, HeldOverFork, Interner};

use crate::blocks::Sampled;
use crate::counters::{Counters, Overlap, Sum};
use crate::counts::AtPeak;
use crate::live::{DomainBytes, Live};
use crate::origin::{Origin, Origins};
use crate::profile_error::ProfileError;
use crate::site::{SiteEntry, SiteKey, SiteWord, class_bytes, class_of};
use crate::snapshot::{Amount, Site, Snapshot, Stack};
use crate::source::{Location, StackSource};
use crate::stack_table::StackTable;
use crate::stacks::{Captured, Stacks, Wanted, mix, unrecorded};
use crate::trail::{Active, Unusual};

/// How a [`Profile`] records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The most frames that are kept of a stack, the innermost ones: 1 to [`MAX_FRAMES`](crate::MAX_FRAMES); 32 unless set.
    pub frames: usize,
    /// Whether calls of the mem and obj domains never overlap, as Python's threads hold the GIL in them; false unless set.
    ///
    /// Counts of calls that overlap all the same may be lost, until the profile is [shared](Profile::share).
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
    number: NonZeroU16,
    /// How many frames are told of one stack.
    frames: usize,
    /// By the site's number, what its counts have no room for.
    upper: Interner<u32, Upper>,
    origins: Origins,
    /// The stacks, while allocations are recorded.
    wanted: Wanted,
    live: Live,
    lost: Lost,
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
        let profile = immortal::leak(Self {
            stacks,
            number: stacks.add_profile()?,
            frames: options.frames,
            upper: Interner::new(UPPER_BUCKETS).ok_or(ProfileError::NoMemory(UPPER_BUCKETS))?,
            origins: Origins::new(),
            wanted: Wanted::none(),
            live: Live::new(options.serialized),
            lost: Lost::default(),
        });
        profile.set_recording(true);
        Ok(profile)
    }

    /// The stacks of the profile, whose locks are held over a fork beside the profile's own.
    pub const fn stacks(&self) -> &'static StackTable<S> {
        self.stacks
    }

    /// From now on calls of all domains may overlap, of a profile that was [serialized](Options::serialized); what is counted during this
    /// call may be lost.
    ///
    /// Whoever makes calls overlap lets the threads that make them see this call before.
    pub fn share(&self) {
        self.live.share();
    }

    /// Stops recording allocations, or goes on; frees of recorded blocks are counted all the while.
    pub fn set_recording(&self, recording: bool) {
        self.wanted.set(recording.then_some(self.stacks.stacks()));
    }

    /// Lets the peak begin anew, at what is live now: what was live before is forgotten. Totals go on.
    ///
    /// The caller keeps other threads out of the domains whose calls are [`serialized`](Options::serialized).
    pub fn begin_peak(&self) {
        self.live.begin_peak();
    }

    /// Whether allocations are recorded.
    #[inline]
    #[must_use]
    pub fn is_recording(&self) -> bool {
        self.wanted.is_any()
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
    #[inline]
    pub(crate) fn allocate(
        &'static self,
        origin: u8,
        size: usize,
        amount: Amount,
    ) -> Option<&'static SiteEntry> {
        self.allocate_for(self.capture()?, origin, size, amount)
    }

    /// The calling thread's stack, where that is found without a call of any function; else how it is to be found.
    #[inline(always)]
    pub(crate) fn usual(&'static self) -> Result<Captured<'static>, Unusual> {
        Stacks::usual(&self.wanted, self.stacks.source())
    }

    /// As [`usual`](Self::usual), of a stack whose newest call is [fresh](Unusual::Called), likely.
    #[inline(always)]
    pub(crate) fn called(&'static self) -> Option<Captured<'static>> {
        self.stacks.stacks().called(self.stacks.source())
    }

    /// As [`usual`](Self::usual), of a stack whose newest call has [moved](Unusual::Moved).
    ///
    /// # Safety
    ///
    /// 1. `usual` has just told so of the thread, by this `end`.
    #[inline(always)]
    pub(crate) unsafe fn moved(&'static self, end: NonNull<Active>) -> Option<Captured<'static>> {
        // SAFETY: 1: duty 1, of the tree of these stacks, as they are wanted.
        unsafe { self.stacks.stacks().moved(self.stacks.source(), end) }
    }

    /// The calling thread's stack; `None` while nothing is recorded.
    pub(crate) fn capture(&'static self) -> Option<Captured<'static>> {
        if !self.is_recording() {
            return None;
        }
        self.stacks.stacks().capture(self.stacks.source())
    }

    /// As [`allocate`](Self::allocate), of a stack that the thread has captured.
    #[inline(never)]
    pub(crate) fn allocate_for(
        &'static self,
        captured: Captured<'_>,
        origin: u8,
        size: usize,
        amount: Amount,
    ) -> Option<&'static SiteEntry> {
        let (stack, profile, class) = (captured.node(), self.number, class_of(size));
        let key = SiteKey { stack, profile, origin, class };
        let site = match captured.site(key.word()) {
            Some(site) => site,
            None => self.site_of(captured, key, amount)?,
        };
        self.allocate_at(site, amount);
        Some(site)
    }

    /// The number of the keys of a domain's sites, but for the stack and the class.
    pub(crate) const fn keys_of(&self, domain: Domain) -> SiteWord {
        SiteKey { stack: 0, profile: self.number, origin: domain as u8, class: 0 }.word()
    }

    /// The bytes of a domain.
    pub(crate) fn live_of(&'static self, domain: Domain) -> &'static DomainBytes {
        self.live.of(domain)
    }

    /// Counts an allocation of `amount` at a site.
    pub(crate) fn allocate_at(&'static self, site: &SiteEntry, amount: Amount) {
        let origin = site.key().origin;
        self.before_change(site);
        let carry = site.value().allocate(amount, self.overlap(origin));
        if carry != Amount::default() {
            self.with_upper(site, |upper| upper.halves.allocate(carry, Overlap::AtAnyTime));
        }
        self.live.allocate(origin, amount.bytes);
    }

    /// The site of a key, which the thread remembers from now on; `None`, and `amount` is lost, without memory for it.
    #[cold]
    #[inline(never)]
    fn site_of(
        &'static self,
        captured: Captured<'_>,
        key: SiteKey,
        amount: Amount,
    ) -> Option<&'static SiteEntry> {
        let site = self.stacks.stacks().site_of(key);
        match site {
            Some(site) => captured.set_site(key, site),
            None => {
                self.lost.bytes.fetch_add(amount.bytes, Relaxed);
                self.lost.blocks.fetch_add(amount.blocks, Relaxed);
            }
        }
        site
    }

    /// Has a site note what it holds, if that is what it held at the peak.
    #[inline]
    fn before_change(&'static self, site: &SiteEntry) {
        let peak = self.live.peak();
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
        let peak = match site.value().at_peak(self.live.peak()) {
            AtPeak::Unchanged => live,
            AtPeak::Noted(peak) => peak,
            AtPeak::Large => self.upper(site).map(|upper| upper.peak.get()).unwrap_or_default(),
        };
        [live, peak, total]
    }

    /// The site with this number.
    #[inline]
    pub(crate) fn site_at(&'static self, number: u32) -> Option<&'static SiteEntry> {
        self.stacks.stacks().sites().get(number)
    }

    /// Counts that `amount` of a site is freed.
    #[inline(always)]
    pub(crate) fn free(&'static self, site: &SiteEntry, amount: Amount) {
        let origin = site.key().origin;
        self.live.before_free(origin, amount.bytes);
        self.before_change(site);
        let carry = site.value().free(amount, self.overlap(origin));
        if carry != Amount::default() {
            self.with_upper(site, |upper| upper.halves.free(carry, Overlap::AtAnyTime));
        }
        self.live.free(origin, amount.bytes);
    }

    /// Counts what was noted of a block as freed, if anything was.
    #[inline(always)]
    pub(crate) fn free_noted(&'static self, noted: Option<Sampled>) {
        if let Some(Sampled { site, amount }) = noted {
            self.free(site, amount);
        }
    }

    /// Notes what is live now as the peak, if it is one.
    pub(crate) fn note_peak(&self) {
        self.live.note_peak();
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
        self.site_at(number).filter(|site| site.key().profile == self.number)
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
        self.live.overlap(origin)
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
