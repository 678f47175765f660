//! Owns `Live`: how many bytes are live, by who allocated them, and whether that is the peak.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

use malloc_api::Domain;

use crate::counters::Overlap;

/// The live bytes of all sites, and the peak.
#[derive(Debug)]
pub(crate) struct Live {
    /// Those of each domain, and of all that is reported.
    domains: [DomainBytes; 4],
    /// Whether calls of the mem and obj domains do not overlap.
    is_serialized: AtomicBool,
    /// The live bytes at the noted peak.
    noted: AtomicU64,
    /// How many peaks were noted, each above the one before. A site notes what it held when it first changes after one.
    peaks: AtomicU32,
}

/// The bytes of a domain; apart, as some domains may count without atomic additions.
#[derive(Debug)]
pub(crate) struct DomainBytes {
    allocated: AtomicU64,
    freed: AtomicU64,
    /// The freed bytes at which the next look for a peak is due.
    look_at: AtomicU64,
    /// The same where no more is to be done before than an addition; else 0.
    plain_below: AtomicU64,
    /// The number of the last peak where counting is no more than an addition; else [`NO_PEAK`].
    plain_peak: AtomicU32,
}

/// The number of no peak.
const NO_PEAK: u32 = u32::MAX;

impl DomainBytes {
    const fn new() -> Self {
        Self {
            allocated: AtomicU64::new(0),
            freed: AtomicU64::new(0),
            look_at: AtomicU64::new(0),
            plain_below: AtomicU64::new(0),
            plain_peak: AtomicU32::new(NO_PEAK),
        }
    }

    /// The number of the last peak, which no site has that is to be counted in another way than by additions.
    #[inline(always)]
    pub(crate) fn plain_peak(&self) -> u32 {
        self.plain_peak.load(Relaxed)
    }

    /// Counts bytes of a domain whose calls never overlap.
    #[inline(always)]
    pub(crate) fn allocate_plainly(&self, bytes: u32) {
        add(&self.allocated, bytes.into(), Overlap::Never);
    }

    /// Whether the next `bytes` are freed by an addition, as [`free_plainly`](Self::free_plainly) does.
    #[inline(always)]
    pub(crate) fn frees_plainly(&self, bytes: u32) -> bool {
        let after = self.freed.load(Relaxed).wrapping_add(bytes.into());
        after < self.plain_below.load(Relaxed)
    }

    #[inline(always)]
    pub(crate) fn free_plainly(&self, bytes: u32) {
        add(&self.freed, bytes.into(), Overlap::Never);
    }
}

/// Adds to a count that only grows; returns the sum.
#[inline(always)]
fn add(to: &AtomicU64, more: u64, overlap: Overlap) -> u64 {
    // Relaxed: each count stands for itself, and whoever wants an exact reading stops the program first.
    match overlap {
        Overlap::Never => {
            let after = to.load(Relaxed).wrapping_add(more);
            to.store(after, Relaxed);
            after
        }
        Overlap::AtAnyTime => to.fetch_add(more, Relaxed).wrapping_add(more),
    }
}

impl Live {
    /// No bytes. If calls are `serialized`, those of the mem and obj domains do not overlap.
    pub(crate) fn new(serialized: bool) -> Self {
        let live = Self {
            domains: [const { DomainBytes::new() }; 4],
            is_serialized: AtomicBool::new(serialized),
            noted: AtomicU64::new(0),
            peaks: AtomicU32::new(0),
        };
        for index in 0..live.domains.len() {
            if live.overlap_at(index) == Overlap::Never {
                live.domains[index].plain_peak.store(0, Relaxed);
            }
        }
        live
    }

    /// From now on calls of all domains may overlap.
    pub(crate) fn share(&self) {
        // Relaxed: whoever makes calls overlap lets the threads that make them see this before.
        self.is_serialized.store(false, Relaxed);
        // The largest number of all, so that no peak that is noted meanwhile takes its place.
        self.domains.iter().for_each(|bytes| bytes.plain_peak.store(NO_PEAK, Relaxed));
    }

    /// Where an origin's bytes are counted.
    #[inline(always)]
    fn index(origin: u8) -> usize {
        usize::from(origin).min(Domain::ALL.len())
    }

    /// The bytes of a domain.
    pub(crate) fn of(&self, domain: Domain) -> &DomainBytes {
        &self.domains[domain as usize]
    }

    /// How an origin's calls are counted.
    #[inline(always)]
    pub(crate) fn overlap(&self, origin: u8) -> Overlap {
        self.overlap_at(Self::index(origin))
    }

    #[inline(always)]
    fn overlap_at(&self, index: usize) -> Overlap {
        let is_held = index == Domain::Mem as usize || index == Domain::Obj as usize;
        if is_held && self.is_serialized.load(Relaxed) {
            Overlap::Never
        } else {
            Overlap::AtAnyTime
        }
    }

    /// The bytes of all origins.
    ///
    /// Read while other threads count, the sums may be of different moments; a difference below zero is zero.
    pub(crate) fn bytes(&self) -> u64 {
        let of = |DomainBytes { allocated, freed, .. }: &DomainBytes| {
            // Frees first: what they count was allocated before.
            let freed = freed.load(Relaxed);
            allocated.load(Relaxed).saturating_sub(freed)
        };
        self.domains.iter().map(of).sum()
    }

    /// The number of the last peak.
    #[inline(always)]
    pub(crate) fn peak(&self) -> u32 {
        self.peaks.load(Relaxed)
    }

    #[inline(always)]
    pub(crate) fn allocate(&self, origin: u8, bytes: u64) {
        let index = Self::index(origin);
        add(&self.domains[index].allocated, bytes, self.overlap_at(index));
    }

    /// Looks for a peak before `bytes` are freed, if that is due.
    #[inline]
    pub(crate) fn before_free(&self, origin: u8, bytes: u64) {
        let index = Self::index(origin);
        let DomainBytes { freed, look_at, .. } = &self.domains[index];
        if freed.load(Relaxed).wrapping_add(bytes) >= look_at.load(Relaxed) {
            self.look_for_peak(index, bytes);
        }
    }

    /// Counts freed bytes.
    #[inline]
    pub(crate) fn free(&self, origin: u8, bytes: u64) {
        let index = Self::index(origin);
        add(&self.domains[index].freed, bytes, self.overlap_at(index));
    }

    /// Notes the peak if `bytes` are about to be freed and more is live than at the last noted peak.
    ///
    /// Growth alone never comes here. Between two looks less than 1/128 of what is live, or 4 KiB, is freed in one domain, so that
    /// what is live at a look is at most that much below any peak since the look before; and a peak is noted only when it is
    /// 1/128 above the last noted one, so that sites rarely note what they hold.
    #[cold]
    fn look_for_peak(&self, index: usize, bytes: u64) {
        let live = self.bytes();
        let freed = self.domains[index].freed.load(Relaxed).wrapping_add(bytes);
        let look_at = freed + (live.saturating_sub(bytes) / 128).max(4096);
        let DomainBytes { look_at: next, plain_below, .. } = &self.domains[index];
        next.store(look_at, Relaxed);
        if self.overlap_at(index) == Overlap::Never {
            plain_below.store(look_at, Relaxed);
        }
        self.note_peak_of(live, self.noted.load(Relaxed) / 128);
    }

    /// Notes what is live now as the peak, if it is one.
    pub(crate) fn note_peak(&self) {
        self.note_peak_of(self.bytes(), 0);
    }

    /// Notes what is live now as the peak, whatever was live before, and looks for the next one at once.
    pub(crate) fn begin_peak(&self) {
        let live = self.bytes();
        self.noted.store(live, Relaxed);
        for bytes in &self.domains {
            bytes.look_at.store(0, Relaxed);
            bytes.plain_below.store(0, Relaxed);
        }
        self.number_peak();
    }

    /// Notes the peak if `live` is more than `margin` above the last noted one.
    fn note_peak_of(&self, live: u64, margin: u64) {
        let noted = self.noted.load(Relaxed);
        let is_above = live > noted.saturating_add(margin);
        // One thread of those that see the same peak.
        let note = || self.noted.compare_exchange(noted, live, Relaxed, Relaxed);
        if is_above && note().is_ok() {
            self.number_peak();
        }
    }

    /// Gives what is live now the number of a new peak.
    fn number_peak(&self) {
        let number = self.peaks.fetch_add(1, Relaxed).wrapping_add(1);
        for (index, bytes) in self.domains.iter().enumerate() {
            if self.overlap_at(index) == Overlap::Never {
                // Of two threads that note peaks, the second may come here first.
                bytes.plain_peak.fetch_max(number, Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_is_told_to_the_domains_that_count_by_additions() {
        let live = Live::new(true);
        live.allocate(Domain::Mem as u8, 10);
        live.note_peak();
        assert_eq!(live.peak(), 1);
        let told = [Domain::Raw, Domain::Mem, Domain::Obj].map(|of| live.of(of).plain_peak());
        assert_eq!(told, [NO_PEAK, 1, 1]);
    }

    #[test]
    fn no_domain_counts_by_additions_once_they_are_shared() {
        let live = Live::new(true);
        live.share();
        live.allocate(Domain::Mem as u8, 10);
        live.note_peak();
        assert_eq!(live.peak(), 1);
        assert_eq!(Domain::ALL.map(|of| live.of(of).plain_peak()), [NO_PEAK; 3]);
        assert_eq!(live.overlap(Domain::Obj as u8), Overlap::AtAnyTime);
    }
}
