//! What a sampled profile says of the sites that hold the most.

use std::collections::HashMap;

use heap_profile::SampledProfiler;
use malloc_api::{Domain, LibcMalloc, Malloc};

use crate::script::{profile, run};

const INTERVAL: u64 = 1_024;
const SIZES: [usize; 10] = [16, 24, 40, 64, 100, 200, 500, 1_000, 3_000, 8_000];

/// The line of each site, the size of its blocks and their count: ten that hold 1,000 intervals and more, and twenty of half as much.
///
/// Of `n` intervals in small blocks some `n` samples are taken, so that the estimate's deviation is one part in the square root
/// of `n`. Ten sites at once are within a tenth nine times in ten from some 660 on; at 1,000 a tenth is three deviations.
fn sites() -> impl Iterator<Item = (usize, usize, usize)> {
    (0..30).map(|site: usize| {
        let intervals = if site < 10 { 1_000 + 100 * site } else { 500 - 10 * (site - 10) };
        let size = SIZES[site % 10];
        (101 + site, size, intervals * INTERVAL as usize / size)
    })
}

#[test]
fn the_ten_largest_sites_are_found_and_their_bytes_are_right_to_a_tenth() {
    let mut right = 0;
    for _ in 0..20 {
        let (_, profile) = profile(32);
        let heap = SampledProfiler::new(LibcMalloc, profile, Domain::Obj, INTERVAL);
        let mut blocks = Vec::new();
        for (line, size, count) in sites() {
            run(&[line], || blocks.extend((0..count).map(|_| heap.malloc(size))));
        }
        let mut held: HashMap<usize, u64> = HashMap::new();
        for site in profile.snapshot().sites {
            *held.entry(site.stack[0].line as usize).or_default() += site.live.bytes;
        }
        let mut largest: Vec<(usize, u64)> =
            held.iter().map(|(&line, &bytes)| (line, bytes)).collect();
        largest.sort_by_key(|&(_, bytes)| std::cmp::Reverse(bytes));
        assert!(largest[..10].iter().all(|&(line, _)| line <= 110), "{largest:?}");
        right += usize::from(sites().take(10).all(|(line, size, count)| {
            (held[&line] as f64 / (size * count) as f64 - 1.0).abs() <= 0.1
        }));
        // SAFETY: (1) live; (2) not used again.
        blocks.into_iter().for_each(|block| unsafe { heap.free(block) });
        assert_eq!(profile.live_bytes(), 0);
    }
    assert!(right >= 18, "{right} of 20 runs");
}
