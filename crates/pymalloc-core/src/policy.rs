//! Owns the decisions: every number that could as well be another one, with what it was weighed against, and the guess
//! how much free memory stays resident. Leaves sizes that follow from the layout to `config.rs`.
//!
//! The measurements, and what was tried and dropped, are in `docs/design/pymalloc.md`.

use crate::config::ARENA_BYTES;
#[cfg(feature = "std")]
use crate::config::HUGE_PAGE_BYTES;

/// Bytes of free pools that stay resident, however little is in use.
///
/// 8 MiB take 5 % more memory at the end of a program; 4 MiB make a program that frees half of its memory and allocates
/// anew fault a sixth more often.
const KEPT_MIN_BYTES: usize = 6 << 20;

/// A trim frees this part of the kept bytes beyond its target, so that the next free does not trim again.
const TRIM_FRACTION: usize = 4;

/// From this part below what is kept on, a thread's free blocks go to their pools first, and the trim comes as early as without them.
const NEAR_FRACTION: usize = 4;

/// Bytes that the floor rises by for each byte that was given back and then needed again.
///
/// With 16, a program that repeats itself faults in its second and third pass and hardly again; with 4 it needs up to eight
/// passes. With 64 one program of thirteen holds 1.47 of CPython's memory at its end instead of 0.88.
const FLOOR_RISE: usize = 16;

/// The part of the floor's rise that each trim takes back: memory kept for a past peak is released over time.
const FLOOR_DECAY: usize = 64;

/// How free pools give way to large blocks.
struct Beside {
    /// Bytes of large blocks that a program asks for before its peak is looked at.
    asked: usize,
    /// Bytes of free pools that stay: what is needed next.
    stay: usize,
    /// Bytes of free pools that go together.
    due: usize,
}

/// Where memory comes in huge pages: the other half of one comes free, and is needed next. Without 1 MiB that stays a program that grows
/// faulted 2.5 times as often.
const BESIDE_HASTE: Beside = Beside { asked: 256 << 10, stay: ARENA_BYTES, due: ARENA_BYTES };

/// Where it comes page by page: with 1 MiB that stays, and 256 KiB at a time, a program of 22 MiB peaked 0.8 MiB higher.
const BESIDE_OTHERS: Beside = Beside { asked: 128 << 10, stay: 512 << 10, due: 128 << 10 };

/// Arenas, the fullest, among which a pool is opened in one that has memory, so that no page is touched while another one is free.
pub(crate) const FULLEST_MAX: usize = 16;

/// Bytes of a cache line before the first block of a pool of whole lines: as many as CPython's header of a pool has, so that two words of the
/// block are in one line, and the rest is in the next.
pub(crate) const LINE_START: usize = 48;

/// Bytes of idle blocks that move to a pool's list at a time: few enough to stay in the cache until they are used.
pub(crate) const EXTEND_BYTES: usize = 1024;

/// Bytes of fresh memory that are populated together: a page then costs a third less than by a fault. 64 KiB were slower,
/// 256 KiB not faster and 2 % more memory.
pub(crate) const POPULATE_BYTES: usize = 128 << 10;

/// Bytes of free blocks of one class that a thread keeps before the lock at most, none above this; so much after a few calls that
/// take the lock for the class.
pub(crate) const MAGAZINE_BYTES: usize = 8 << 10;

/// Blocks that a thread keeps of one class at most.
pub(crate) const MAGAZINE_BLOCKS: usize = 128;

/// As the two before, of a thread that waits for others where it takes the lock.
pub(crate) const MEETING_BYTES: usize = 32 << 10;
pub(crate) const MEETING_BLOCKS: usize = 512;

/// How often a thread waits for the lock before it gets a lane of its own, and more room: where callers hold a lock that is theirs
/// it never waits.
pub(crate) const MEETINGS: u8 = 16;

/// Bytes of arenas up to which an allocator gets small pages, and only those that it touches: in a small program most classes have
/// one pool and use a page of it, and half of a huge page would be left.
#[cfg(feature = "std")]
pub(crate) const SMALL_UP_TO_BYTES: usize = 2 << 20;

/// Nanoseconds of processor time in which a hasty program fills an arena. The arena's page faults take 0.2 to 0.5 ms: a tenth to a
/// quarter of this, which a huge page spares. A program that takes longer gets small pages, as half of its last huge page would be left.
#[cfg(feature = "std")]
const HASTE_NANOS: u64 = 2_000_000;

/// How fast a process fills its arenas.
#[cfg(feature = "std")]
pub(crate) struct Pace {
    /// Processor time when an arena was last asked for.
    last: u64,
    /// Whether the one before that was filled in haste.
    was_hasty: bool,
}

#[cfg(feature = "std")]
impl Pace {
    pub(crate) const fn new() -> Self {
        Self { last: 0, was_hasty: false }
    }

    /// Notes that an arena is asked for at `now`, in nanoseconds of processor time: were the two before filled in haste?
    ///
    /// The clock of a forked child begins again: of the arena that it was forked in, nobody knows how fast it was filled.
    pub(crate) fn is_hasty(&mut self, now: u64) -> bool {
        let took = now.checked_sub(core::mem::replace(&mut self.last, now));
        let is_hasty = took.is_some_and(|took| took < HASTE_NANOS);
        let was_hasty = core::mem::replace(&mut self.was_hasty, is_hasty);
        was_hasty && self.was_hasty
    }
}

/// Bytes without memory in the two arenas of a huge page from which on they come back together: the system copies what is there
/// and clears the rest in 150 microseconds, as 110 page faults take.
const REGROWN_MIN_BYTES: usize = 512 << 10;

/// Huge pages that the system may refuse before it is no longer asked.
#[cfg(feature = "std")]
pub(crate) const HUGE_REFUSALS_MAX: u8 = 4;

/// Length of a period in seconds: what is free stays resident for one at least, and for two at most.
#[cfg(feature = "std")]
pub(crate) const IDLE_SECONDS: u32 = 2;

/// Bytes that an allocator has to spare before a thread watches over them: a small program needs none.
#[cfg(feature = "std")]
pub(crate) const PURGER_AFTER_BYTES: usize = 2 << 20;

/// Bytes of free runs that stay resident, however little is in use. With 1 MiB a web page from templates took twice the page faults.
#[cfg(feature = "std")]
pub(crate) const RUNS_KEPT_MIN_BYTES: usize = 4 << 20;

/// Bytes of free runs that stay where the process's peak grows.
#[cfg(feature = "std")]
pub(crate) const RUNS_BESIDE_GROWTH_BYTES: usize = 64 << 10;

/// Bytes of a block from which on one that has grown lies behind all others: it can grow again where it is.
#[cfg(feature = "std")]
pub(crate) const RUNS_GROWING_BYTES: usize = 32 << 10;

/// Bytes of addresses beyond the last run that stay mapped.
#[cfg(feature = "std")]
pub(crate) const RUNS_UNMAPPED_BYTES: usize = 4 << 20;

/// Addresses among which a region's base is drawn.
#[cfg(feature = "std")]
pub(crate) struct HintRange {
    start: usize,
    bytes: usize,
}

#[cfg(feature = "std")]
impl HintRange {
    /// A multiple of a huge page in the range.
    pub(crate) fn pick(&self, random: usize) -> usize {
        let pages = self.bytes / HUGE_PAGE_BYTES;
        self.start + random % pages * HUGE_PAGE_BYTES
    }
}

/// Where the region begins if the addresses are free, in order of preference.
///
/// Nothing else must come to lie in the region, not even where an arena was; without such a place there is no region. Linux
/// and macOS place nothing from 32 to 40 TiB: this is above what mimalloc asks for (2 to 30 TiB), below the kernel's own
/// choices (42 TiB with an unlimited stack, else at the top), programs (85 TiB) and the shadow of sanitizers. The range
/// from 128 to 192 GiB is for systems with 39 bits of addresses.
#[cfg(feature = "std")]
pub(crate) const REGION_HINTS: [HintRange; 2] = [
    HintRange { start: 32 << 40, bytes: 8 << 40 },
    HintRange { start: 128 << 30, bytes: 64 << 30 },
];

/// How much of the free memory stays resident for the next need: as much as is in use, and a floor.
///
/// A program that frees half of its memory and allocates anew meets no page fault, and one that ends its life holds
/// little. The floor learns from memory that was given back too early.
pub(crate) struct Kept {
    /// Invariant 1: at least `KEPT_MIN_BYTES`.
    floor: usize,
    /// Bytes given back that have not been needed again since.
    given_back: usize,
    /// Bytes of large blocks that the program asked for since its peak was looked at.
    asked: usize,
    /// Bytes of free pools that are to give way to large blocks, less than go together: memory for each few
    /// pages by which a peak creeps up would be missed at once.
    due: usize,
    /// The most bytes that the process had resident by then.
    peak: usize,
    /// Bytes of the largest block that the program asked for outside of the pools while some of them were free.
    largest: usize,
    /// Whether memory comes ahead of need in the arena that came last.
    is_hasty: bool,
}

impl Kept {
    pub(crate) const fn new() -> Self {
        Self {
            floor: KEPT_MIN_BYTES,
            given_back: 0,
            asked: 0,
            due: 0,
            peak: 0,
            largest: 0,
            is_hasty: true,
        }
    }

    /// Notes whether memory comes ahead of need in the arena that came last.
    pub(crate) fn note_haste(&mut self, is_hasty: bool) {
        self.is_hasty = is_hasty;
    }

    /// By value: numbers in the code, where a place for them would be one more page of the library in memory.
    #[inline]
    const fn beside(&self) -> Beside {
        if self.is_hasty { BESIDE_HASTE } else { BESIDE_OTHERS }
    }

    /// Forgets what was given back too early. The program's peak, and its largest block, stay what they are.
    pub(crate) fn begin_anew(&mut self) {
        self.floor = KEPT_MIN_BYTES;
        self.given_back = 0;
    }

    /// Bytes of free pools that may stay resident beside `open_bytes` of pools in use.
    #[inline]
    pub(crate) fn bytes(&self, open_bytes: usize) -> usize {
        open_bytes.max(self.floor)
    }

    /// Whether `spare` bytes of free pools are nearly as much as may stay resident: those that free blocks before the pools pin make
    /// up the rest.
    pub(crate) fn is_near(&self, open_bytes: usize, spare: usize) -> bool {
        spare + spare / NEAR_FRACTION > self.bytes(open_bytes)
    }

    /// Bytes of free pools that a trim leaves resident.
    pub(crate) fn trim_target(&self, open_bytes: usize) -> usize {
        let kept = self.bytes(open_bytes);
        kept - kept / TRIM_FRACTION
    }

    /// Notes that the program asks for `large` bytes outside of the pools, of which `spare` bytes are free: is it time for
    /// [`target_beside`](Self::target_beside)?
    #[inline]
    pub(crate) fn is_large_enough(&mut self, large: usize, spare: usize) -> bool {
        self.asked = self.asked.saturating_add(large);
        let Beside { asked, stay, .. } = self.beside();
        self.asked >= asked && spare >= asked + stay
    }

    /// How many of the `spare` bytes of free pools stay resident beside a block of `large` bytes and those before it, in a process
    /// that had `peak` bytes resident at most; `None` for all, also where too little is due.
    ///
    /// Free pools are as many as were in use once, so the pools alone lift no peak; with large blocks beside them they do. So free
    /// pools give way where the peak has grown, and to a block that is larger than any before, since that one will lift the peak. A
    /// program that repeats itself does neither.
    pub(crate) fn target_beside(
        &mut self,
        large: usize,
        spare: usize,
        peak: usize,
    ) -> Option<usize> {
        let asked = core::mem::take(&mut self.asked);
        let grown = peak.saturating_sub(core::mem::replace(&mut self.peak, peak));
        let is_largest = large > self.largest;
        self.due = self.due.saturating_add(if is_largest { asked } else { asked.min(grown) });
        (self.due >= self.beside().due).then(|| {
            let room = core::mem::take(&mut self.due);
            spare.saturating_sub(room).max(self.beside().stay)
        })
    }

    /// Notes that the block of `large` bytes that [`target_beside`](Self::target_beside) was asked for is there.
    pub(crate) fn served(&mut self, large: usize) {
        self.largest = self.largest.max(large);
    }

    /// Notes that there is no block of `large` bytes, which counts as not asked for.
    pub(crate) fn refused(&mut self, large: usize) {
        self.asked = self.asked.saturating_sub(large);
    }

    /// Notes that a trim gave `bytes` back to the system, and lowers the floor a little.
    pub(crate) fn gave_back(&mut self, bytes: usize) {
        self.given_back += bytes;
        self.floor -= (self.floor - KEPT_MIN_BYTES) / FLOOR_DECAY;
    }

    /// Bytes that were given back and have not been needed again so far.
    pub(crate) fn missing(&self) -> usize {
        self.given_back
    }

    /// Whether `bytes` that went back are worth a huge page when some of them are needed: all of them were needed once, so that the
    /// process comes to hold no more than it did.
    pub(crate) fn may_regrow(&self, bytes: usize) -> bool {
        (REGROWN_MIN_BYTES..=self.given_back).contains(&bytes)
    }

    /// Notes that `bytes` of fresh memory are needed page by page. If they had been given back, giving them back was a
    /// mistake: the floor rises, up to `peak`.
    pub(crate) fn missed(&mut self, bytes: usize, peak: usize) {
        let missed = self.needed(bytes);
        self.floor = (self.floor + FLOOR_RISE * missed).min(peak.max(KEPT_MIN_BYTES));
    }

    /// Notes that `bytes` of fresh memory came at little cost, in huge pages or to a program that has other work to do; returns how many
    /// had been given back before.
    pub(crate) fn needed(&mut self, bytes: usize) -> usize {
        let again = bytes.min(self.given_back);
        self.given_back -= again;
        again
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;
    const ASKED_BYTES: usize = BESIDE_HASTE.asked;
    const GROWTH_BYTES: usize = BESIDE_HASTE.stay;

    #[test]
    fn free_pools_give_way_to_large_blocks_where_the_peak_grows() {
        let mut kept = Kept::new();
        let mut ask = |large, spare, peak| {
            let is_due = kept.is_large_enough(large, spare);
            let target = is_due.then(|| kept.target_beside(large, spare, peak)).flatten();
            kept.served(large);
            target
        };
        assert_eq!(ask(ASKED_BYTES - 1, 8 * MIB, 0), None, "too little to look at");
        assert_eq!(ask(4 * MIB, MIB, 20 * MIB), None, "nothing to spare");
        assert_eq!(
            ask(2 * MIB, 16 * MIB, 20 * MIB),
            Some(10 * MIB + 1 - ASKED_BYTES),
            "the largest"
        );
        assert_eq!(ask(2 * MIB, 10 * MIB, 20 * MIB), None, "repeated at the same peak");
        assert_eq!(
            ask(2 * MIB, 10 * MIB, 21 * MIB),
            Some(9 * MIB),
            "as much as the peak has grown"
        );
        assert_eq!(ask(2 * MIB, 10 * MIB, 90 * MIB), Some(8 * MIB), "not more than was asked for");
        assert_eq!(ask(2 * MIB, 10 * MIB, 91 * MIB - 1), None, "less than an arena");
        assert_eq!(ask(2 * MIB, 10 * MIB, 91 * MIB), Some(9 * MIB), "an arena by and by");
        assert_eq!(
            ask(20 * MIB, 10 * MIB, 91 * MIB),
            Some(GROWTH_BYTES),
            "what is needed next stays"
        );
    }

    /// A program that catches one `MemoryError` gives way as before.
    #[test]
    fn a_request_that_fails_is_no_largest_block() {
        let mut kept = Kept::new();
        assert!(kept.is_large_enough(MIB, 3 * MIB));
        assert_eq!(kept.target_beside(MIB, 3 * MIB, 0), Some(2 * MIB), "the largest");
        kept.served(MIB);
        assert!(kept.is_large_enough(ASKED_BYTES, 3 * MIB));
        assert_eq!(kept.target_beside(2 * MIB, 3 * MIB, 0), None, "less than an arena is due");
        for _ in 0..2 {
            assert!(kept.is_large_enough(usize::MAX, 3 * MIB));
            assert_eq!(kept.target_beside(usize::MAX, 3 * MIB, 0), Some(GROWTH_BYTES));
            kept.refused(usize::MAX);
            assert!(!kept.is_large_enough(usize::MAX, 0), "nothing to spare");
            kept.refused(usize::MAX);
            assert!(!kept.is_large_enough(0, 3 * MIB), "what is not there was not asked for");
        }
        assert!(kept.is_large_enough(2 * MIB, 3 * MIB));
        assert_eq!(kept.target_beside(2 * MIB, 3 * MIB, 0), Some(GROWTH_BYTES), "the largest");
    }

    #[test]
    fn free_pools_of_small_pages_give_way_in_smaller_steps() {
        let mut kept = Kept::new();
        kept.note_haste(false);
        let Beside { asked, stay, due } = BESIDE_OTHERS;
        assert!(!kept.is_large_enough(asked, asked + stay - 1), "nothing to spare");
        assert!(kept.is_large_enough(0, asked + stay));
        assert_eq!(kept.target_beside(asked, 2 * MIB, 20 * MIB), Some(2 * MIB - asked));
        kept.served(asked);
        assert!(kept.is_large_enough(MIB, MIB));
        assert_eq!(kept.target_beside(1, MIB, 20 * MIB + due - 1), None, "too little to go");
        assert!(kept.is_large_enough(MIB, MIB));
        assert_eq!(kept.target_beside(1, MIB, 20 * MIB + due), Some(MIB - due), "by and by");
        assert!(kept.is_large_enough(MIB, MIB));
        assert_eq!(kept.target_beside(1, MIB, 30 * MIB), Some(stay));
        kept.note_haste(true);
        assert!(!kept.is_large_enough(MIB, MIB), "an arena stays");
    }

    #[test]
    fn a_mistake_raises_the_floor_and_trims_lower_it_again() {
        const MISTAKE_BYTES: usize = 8 << 20;
        let mut kept = Kept::new();
        kept.gave_back(MISTAKE_BYTES);
        kept.missed(2 * MISTAKE_BYTES, usize::MAX);
        let mut floor = KEPT_MIN_BYTES + FLOOR_RISE * MISTAKE_BYTES;
        assert_eq!(kept.bytes(0), floor, "no more was given back");
        for _ in 0..10 * FLOOR_DECAY {
            kept.gave_back(0);
            assert!((KEPT_MIN_BYTES..floor).contains(&kept.bytes(0)));
            floor = kept.bytes(0);
        }
        assert!(floor - KEPT_MIN_BYTES < MISTAKE_BYTES / 100);
        kept.gave_back(MISTAKE_BYTES);
        kept.missed(MISTAKE_BYTES, KEPT_MIN_BYTES + 1);
        assert_eq!(kept.bytes(0), KEPT_MIN_BYTES + 1, "up to the peak");
    }

    #[cfg(feature = "std")]
    #[test]
    fn a_forked_childs_first_arena_is_not_hasty() {
        const EARLIER: u64 = 9 * HASTE_NANOS;
        let mut pace = Pace::new();
        let asks = [EARLIER, EARLIER + 1, EARLIER + 2].map(|now| pace.is_hasty(now));
        assert_eq!(asks, [false, false, true], "two were filled in haste");
        let asks = [1, 2, 3].map(|now| pace.is_hasty(now));
        assert_eq!(asks, [false, false, true], "two in the child");
    }

    #[test]
    fn what_free_blocks_pin_is_a_part_of_what_may_stay() {
        let kept = Kept::new();
        let most = kept.bytes(0) / (NEAR_FRACTION + 1) * NEAR_FRACTION;
        assert!(!kept.is_near(0, most - NEAR_FRACTION));
        assert!(kept.is_near(0, most + 2 * NEAR_FRACTION));
    }
}
