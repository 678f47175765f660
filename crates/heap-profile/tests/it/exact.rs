//! An exact profile: every block at its stack, whatever calls made and moved it.

use heap_profile::{ExactProfiler, Options, Profile, ProfileError, Site, unrecorded};
use malloc_api::testing::FailAfter;
use malloc_api::{Domain, LibcMalloc, Malloc};
use rstest::rstest;

use crate::script::{Script, profile, run};

/// The lines of a site's stack, innermost first, with its live bytes and blocks.
fn lines(site: &Site) -> (Vec<u32>, u64, u64) {
    (site.stack.iter().map(|frame| frame.line).collect(), site.live.bytes, site.live.blocks)
}

#[test]
fn each_call_counts_for_the_stack_that_made_it() {
    let (_, profile) = profile(32);
    let heap = ExactProfiler::new(LibcMalloc, profile, Domain::Obj);
    let first = run(&[101, 202], || heap.malloc(40)).unwrap();
    let zeroed = run(&[101, 203], || heap.calloc(10, 7)).unwrap();
    // SAFETY: (1) live; (2) `first` is not used again.
    let moved = run(&[101, 204], || unsafe { heap.realloc(Some(first), 5_000) }).unwrap();
    let sites: Vec<_> = profile.snapshot().sites.iter().map(lines).collect();
    let expected = [(vec![204, 101], 5_000, 1), (vec![203, 101], 70, 1), (vec![202, 101], 0, 0)];
    assert_eq!(sites, expected);
    for block in [moved, zeroed] {
        // SAFETY: (1) live; (2) not used again.
        run(&[999], || unsafe { heap.free(Some(block)) });
    }
    let snapshot = profile.snapshot();
    assert_eq!((snapshot.live().bytes, snapshot.total().bytes), (0, 5_110));
    assert_eq!(snapshot.total().blocks, 3);
}

#[test]
fn a_realloc_that_fails_leaves_the_block_where_it_was() {
    let (_, profile) = profile(32);
    let heap = ExactProfiler::new(FailAfter::new(LibcMalloc, 1), profile, Domain::Obj);
    let block = run(&[101], || heap.malloc(40)).unwrap();
    // SAFETY: (1) live; (2) it fails.
    assert!(run(&[102], || unsafe { heap.realloc(Some(block), 80) }).is_none());
    assert!(run(&[103], || heap.malloc(1)).is_none());
    assert_eq!(
        profile.snapshot().sites.iter().map(lines).collect::<Vec<_>>(),
        [(vec![101], 40, 1)]
    );
    // SAFETY: (1) live; (2) not used again.
    unsafe { heap.free(Some(block)) };
}

#[test]
fn domains_and_size_classes_are_told_apart() {
    let (_, profile) = profile(32);
    let heaps = Domain::ALL.map(|domain| ExactProfiler::new(LibcMalloc, profile, domain));
    let sizes = [1_usize, 16, 17, 512, 513, 641];
    let blocks: Vec<_> = run(&[101], || {
        let pairs = heaps.iter().flat_map(|heap| sizes.map(|size| (heap, heap.malloc(size))));
        pairs.collect()
    });
    let snapshot = profile.snapshot();
    let classes = |domain: Domain| {
        let mut classes: Vec<_> = snapshot
            .sites
            .iter()
            .filter(|site| site.origin == domain.into())
            .map(|site| (site.class_bytes, site.live.blocks))
            .collect();
        classes.sort_unstable();
        classes
    };
    for domain in Domain::ALL {
        assert_eq!(classes(domain), [(16, 2), (32, 1), (512, 1), (640, 1), (768, 1)]);
    }
    for (heap, block) in blocks {
        // SAFETY: (1) live; (2) not used again.
        unsafe { heap.free(block) };
    }
}

#[rstest]
#[case::limit(3, &[105, 104, 103])]
#[case::all(32, &[105, 104, 103, 102, 101])]
fn a_stack_is_cut_to_its_innermost_frames(#[case] frames: usize, #[case] expected: &[u32]) {
    let (_, profile) = profile(frames);
    let heap = ExactProfiler::new(LibcMalloc, profile, Domain::Obj);
    let block = run(&[101, 102, 103, 104, 105], || heap.malloc(1));
    assert_eq!(lines(&profile.snapshot().sites[0]).0, expected);
    // SAFETY: (1) live; (2) not used again.
    unsafe { heap.free(block) };
}

#[test]
fn a_place_is_asked_for_once_and_a_stack_is_one_path() {
    let (script, profile) = profile(32);
    let heap = ExactProfiler::new(LibcMalloc, profile, Domain::Obj);
    let stacks: [&[usize]; 6] = [&[1, 2, 3], &[1, 2, 4], &[1, 2], &[1, 2, 3], &[], &[5, 2, 3]];
    let blocks = stacks.map(|stack| run(stack, || heap.malloc(8)));
    assert_eq!(script.asked(), [1, 2, 3, 4, 5]);
    let mut sites: Vec<_> = profile.snapshot().sites.iter().map(lines).collect();
    sites.sort();
    let site = |stack: &[u32], blocks: u64| (stack.to_vec(), blocks * 8, blocks);
    assert_eq!(
        sites,
        [
            site(&[], 1),
            site(&[2, 1], 1),
            site(&[3, 2, 1], 2),
            site(&[3, 2, 5], 1),
            site(&[4, 2, 1], 1)
        ]
    );
    // SAFETY: (1) live; (2) not used again.
    blocks.into_iter().for_each(|block| unsafe { heap.free(block) });
}

#[test]
fn two_instructions_of_a_line_are_one_place() {
    let (script, profile) = profile(32);
    let heap = ExactProfiler::new(LibcMalloc, profile, Domain::Obj);
    let blocks = [101, 10_101, 20_101].map(|at| run(&[at, 202], || heap.malloc(10)));
    assert_eq!(script.asked(), [101, 202, 10_101, 20_101]);
    assert_eq!(
        profile.snapshot().sites.iter().map(lines).collect::<Vec<_>>(),
        [(vec![202, 101], 30, 3)]
    );
    // SAFETY: (1) live; (2) not used again.
    blocks.into_iter().for_each(|block| unsafe { heap.free(block) });
}

#[test]
fn two_profiles_in_one_thread_do_not_share_what_a_thread_remembers() {
    let (one_script, one) = profile(32);
    let (other_script, other) = profile(32);
    let heaps = [one, other].map(|profile| ExactProfiler::new(LibcMalloc, profile, Domain::Obj));
    for round in 0..3_u64 {
        for heap in &heaps {
            // The block is lost on purpose.
            assert!(run(&[101, 102], || heap.malloc(8)).is_some());
        }
        for profile in [one, other] {
            let sites: Vec<_> = profile.snapshot().sites.iter().map(lines).collect();
            assert_eq!(sites, [(vec![102, 101], 8 * (round + 1), round + 1)]);
        }
    }
    // A frame of the other profile's tree would not have been asked for in this one.
    assert_eq!((one_script.asked(), other_script.asked()), (vec![101, 102], vec![101, 102]));
}

#[test]
fn profiles_that_share_their_stacks_do_not_share_their_sites() {
    let (_, one) = profile(32);
    let other = Profile::with_stacks(one.stacks(), Options::default()).unwrap();
    let heaps = [one, other].map(|profile| ExactProfiler::new(LibcMalloc, profile, Domain::Obj));
    for heap in [&heaps[0], &heaps[1], &heaps[1]] {
        for stack in [&[101, 102][..], &[]] {
            // The block is lost on purpose.
            assert!(run(stack, || heap.malloc(8)).is_some());
        }
    }
    for (profile, blocks) in [(one, 1), (other, 2)] {
        let sites: Vec<_> = profile.snapshot().sites.iter().map(lines).collect();
        assert_eq!(sites, [(vec![], 8 * blocks, blocks), (vec![102, 101], 8 * blocks, blocks)]);
        let rows: Vec<_> = profile.with_tables(|tables| tables.sites().collect());
        assert!(rows.len() == 2 && rows.iter().all(|row| row.total.blocks == blocks), "{rows:?}");
    }
}

#[test]
fn a_profile_that_does_not_record_still_counts_frees() {
    let (_, profile) = profile(32);
    let heap = ExactProfiler::new(LibcMalloc, profile, Domain::Obj);
    let recorded = run(&[101], || heap.malloc(10));
    profile.set_recording(false);
    let unseen = run(&[102], || heap.malloc(1_000));
    assert_eq!(profile.live_bytes(), 10);
    for block in [recorded, unseen] {
        // SAFETY: (1) live; (2) not used again.
        unsafe { heap.free(block) };
    }
    assert_eq!((profile.live_bytes(), profile.snapshot().total().bytes), (0, 10));
}

#[test]
fn unrecorded_work_is_in_no_profile_and_the_rest_of_its_thread_is() {
    let (_, profile) = profile(32);
    let heap = ExactProfiler::new(LibcMalloc, profile, Domain::Obj);
    let get = |size| run(&[101], || heap.malloc(size));
    let blocks = unrecorded(|| [unrecorded(|| get(1_000)), get(2_000)]);
    assert_eq!(profile.live_bytes(), 0);
    let stopped = std::panic::catch_unwind(|| unrecorded(|| panic!("as work may")));
    assert!(stopped.is_err());
    let recorded = get(30);
    assert_eq!(profile.live_bytes(), 30);
    for block in blocks.into_iter().chain([recorded]) {
        // SAFETY: (1) live; (2) not used again.
        unsafe { heap.free(block) };
    }
    assert_eq!((profile.live_bytes(), profile.snapshot().total().bytes), (0, 30));
}

#[test]
fn growth_is_told_by_stack_the_largest_first() {
    let (_, profile) = profile(32);
    let heap = ExactProfiler::new(LibcMalloc, profile, Domain::Obj);
    let dropped = run(&[101], || heap.malloc(300));
    let before = profile.snapshot();
    // SAFETY: (1) live; (2) not used again.
    unsafe { heap.free(dropped) };
    let kept = [(102, 50), (103, 90), (102, 60)].map(|(at, size)| run(&[at], || heap.malloc(size)));
    let after = profile.snapshot();
    let growth: Vec<_> =
        after.growth_since(&before).iter().map(|(stack, bytes)| (stack[0].line, *bytes)).collect();
    assert_eq!(growth, [(102, 110), (103, 90), (101, -300)]);
    assert!(after.growth_since(&after).is_empty());
    // SAFETY: (1) live; (2) not used again.
    kept.into_iter().for_each(|block| unsafe { heap.free(block) });
}

#[rstest]
#[case::none(0)]
#[case::too_many(129)]
fn a_number_of_frames_that_no_stack_has_is_refused(#[case] frames: usize) {
    let options = Options { frames, ..Options::default() };
    let error = Profile::new(Script::default(), options).unwrap_err();
    assert_eq!(error, ProfileError::Frames(frames));
    let text = format!("a stack cannot be cut to {frames} frames; ask for 1 to 128");
    assert_eq!(error.to_string(), text);
}
