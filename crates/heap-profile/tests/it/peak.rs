//! The peak: what was live when the most was, whatever came later.

use heap_profile::{ExactProfiler, Snapshot};
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
