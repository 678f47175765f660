//! The peak: what was live when the most was, whatever came later.

use heap_profile::{ExactProfiler, Profile, Snapshot, Tracker};
use malloc_api::{Domain, LibcMalloc, Malloc};

use crate::script::{profile, run};

/// The bytes at the peak by the innermost line, for those that had any.
fn at_peak(snapshot: &Snapshot) -> Vec<(u32, u64)> {
    let mut peaks: Vec<_> = snapshot
        .sites
        .iter()
        .map(|site| (site.stack[0].line, site.peak.bytes))
        .filter(|&(_, bytes)| bytes > 0)
        .collect();
    peaks.sort_unstable();
    peaks
}

#[test]
fn a_program_that_only_grows_is_at_its_peak() {
    let (_, profile) = profile(32);
    let heap = ExactProfiler::new(LibcMalloc, profile, Domain::Obj);
    let blocks: Vec<_> = (0..10).map(|_| run(&[101], || heap.malloc(1_000))).collect();
    assert_eq!(at_peak(&profile.snapshot()), [(101, 10_000)]);
    // SAFETY: (1) live; (2) not used again.
    blocks.into_iter().for_each(|block| unsafe { heap.free(block) });
}

#[test]
fn a_peak_in_the_middle_is_seen_to_one_part_in_64() {
    let (_, profile) = profile(32);
    let heap = ExactProfiler::new(LibcMalloc, profile, Domain::Obj);
    // Three phases that each drop what they made: 10 MB, 50 MB and 20 MB of blocks of 1,000 bytes.
    for (at, count) in [(101, 10_000), (102, 50_000), (103, 20_000)] {
        let blocks: Vec<_> = (0..count).map(|_| run(&[at], || heap.malloc(1_000))).collect();
        // SAFETY: (1) live; (2) not used again.
        blocks.into_iter().for_each(|block| unsafe { heap.free(block) });
    }
    let peaks = at_peak(&profile.snapshot());
    let [(102, bytes)] = peaks[..] else { panic!("expected the second phase alone: {peaks:?}") };
    assert!((50_000_000 - 50_000_000 / 64..=50_000_000).contains(&bytes), "{bytes}");
}

#[test]
fn a_peak_that_begins_anew_forgets_the_one_before() {
    for keeps_none in [true, false] {
        let (_, profile) = profile(32);
        let heap = ExactProfiler::new(LibcMalloc, profile, Domain::Obj);
        let make = |line: usize, count: u32| -> Vec<_> {
            (0..count).map(|_| run(&[line], || heap.malloc(1_000))).collect()
        };
        // SAFETY: (1) live; (2) not used again.
        let free =
            |blocks: Vec<_>| blocks.into_iter().for_each(|block| unsafe { heap.free(block) });
        let kept = make(101, if keeps_none { 0 } else { 2 });
        free(make(102, 50_000));
        profile.begin_peak();
        let held = if keeps_none { vec![] } else { vec![(101, 2_000)] };
        assert_eq!(at_peak(&profile.snapshot()), held);
        // Less than what lay between two looks for a peak before.
        free(make(103, 100));
        let expected = [held, vec![(103, 100_000)]].concat();
        assert_eq!(at_peak(&profile.snapshot()), expected);
        free(kept);
        assert_eq!(at_peak(&profile.snapshot()), expected);
    }
}

#[test]
fn a_peak_among_frees_is_seen_too() {
    let (_, profile) = profile(32);
    let heap = ExactProfiler::new(LibcMalloc, profile, Domain::Obj);
    let mut held = Vec::new();
    // Each step makes three and drops one, until 20,000 are held; then all go.
    for step in 0..30_000 {
        held.push(run(&[101], || heap.malloc(100)));
        if step % 3 == 2 {
            // SAFETY: (1) live; (2) not used again.
            unsafe { heap.free(held.pop().flatten()) };
        }
    }
    let most = held.len() as u64 * 100;
    // SAFETY: (1) live; (2) not used again.
    held.into_iter().for_each(|block| unsafe { heap.free(block) });
    let peaks = at_peak(&profile.snapshot());
    let [(101, bytes)] = peaks[..] else { panic!("{peaks:?}") };
    assert!((most - most / 64..=most + 100).contains(&bytes), "{bytes} of {most}");
}

/// As a temporary of most of the program's memory is.
#[test]
fn a_large_block_that_goes_is_part_of_the_peak() {
    let (_, profile) = profile(32);
    let heap = ExactProfiler::new(LibcMalloc, profile, Domain::Obj);
    let kept = run(&[101], || heap.malloc(1_000_000));
    for large in [9_000_000, 50_000_000] {
        let block = run(&[102], || heap.malloc(large));
        // SAFETY: (1) live; (2) not used again.
        run(&[103], || unsafe { heap.free(block) });
        assert_eq!(profile.snapshot().live().bytes, 1_000_000);
        assert_eq!(at_peak(&profile.snapshot()), [(101, 1_000_000), (102, large as u64)]);
    }
    // SAFETY: (1) live; (2) not used again.
    unsafe { heap.free(kept) };
}

#[test]
fn a_site_counts_more_than_half_a_word_holds() {
    const GIB: u64 = 1 << 30;
    let (_, profile) = profile(32);
    let tracker = Tracker::new(profile, 0);
    let track = |address, gib: u64| run(&[101], || tracker.track(7, address, (gib * GIB) as usize));
    // One size class, so that all are one site.
    (1..=3).for_each(|address| track(address, 3));
    let site = |profile: &'static Profile<_>| {
        let snapshot = profile.snapshot();
        let [site] = &snapshot.sites[..] else { panic!("{snapshot:?}") };
        [site.live, site.peak, site.total].map(|amount| (amount.bytes / GIB, amount.blocks))
    };
    assert_eq!(site(profile), [(9, 3), (9, 3), (9, 3)]);
    // The peak stays what it was while the site goes on.
    tracker.untrack(7, 1);
    tracker.untrack(7, 2);
    assert_eq!(site(profile), [(3, 1), (9, 3), (9, 3)]);
    track(4, 3);
    assert_eq!(site(profile), [(6, 2), (9, 3), (12, 4)]);
    (5..=6).for_each(|address| track(address, 3));
    assert_eq!(site(profile), [(12, 4), (12, 4), (18, 6)]);
}

#[test]
fn each_site_keeps_what_it_held_at_the_last_peak() {
    let (_, profile) = profile(32);
    let heap = ExactProfiler::new(LibcMalloc, profile, Domain::Obj);
    let make = |at, size| run(&[at], || heap.malloc(size));
    let [first, second, _kept] = [make(101, 10_000), make(102, 20_000), make(103, 30_000)];
    let all = [(101, 10_000), (102, 20_000), (103, 30_000)];
    assert_eq!(at_peak(&profile.snapshot()), all);
    // SAFETY: (1) live; (2) not used again.
    unsafe { heap.free(first) };
    assert_eq!(at_peak(&profile.snapshot()), all);
    let _ = make(104, 15_000);
    // Above the first peak: the freed block is not in the second.
    let second_peak = [(102, 20_000), (103, 30_000), (104, 15_000)];
    assert_eq!(at_peak(&profile.snapshot()), second_peak);
    // SAFETY: (1) live; (2) not used again.
    unsafe { heap.free(second) };
    assert_eq!(at_peak(&profile.snapshot()), second_peak);
}
