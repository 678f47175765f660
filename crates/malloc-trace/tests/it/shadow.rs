//! The shadow model sees each class of error, says at which operation, and finds nothing in a correct allocator.

use malloc_api::testing::{Counting, FailAfter};
use malloc_api::{LibcMalloc, MAX_REQUEST, Malloc};
use malloc_trace::{Domain, Fault, ModelError, Op, ShadowModel, generate, run, run_domains};
use proptest::prelude::*;
use rstest::rstest;

use crate::flawed::{Bug, Flawed};

/// Addresses differ from run to run: they are not compared.
fn without_addresses(fault: Fault) -> Fault {
    match fault {
        Fault::Misaligned { .. } => Fault::Misaligned { address: 0 },
        Fault::Overlap { slot, size, .. } => Fault::Overlap { address: 0, slot, start: 0, size },
        other => other,
    }
}

/// Each program does only what its bug needs, between operations that are right.
#[rstest]
#[case(Bug::Misaligns, &[Op::malloc(0, Domain::Raw, 24)], Some(0), Fault::Misaligned { address: 0 })]
#[case(
    Bug::Overlaps,
    &[Op::malloc(0, Domain::Raw, 24), Op::malloc(1, Domain::Raw, 24)],
    Some(1),
    Fault::Overlap { address: 0, slot: 0, start: 0, size: 24 }
)]
#[case(
    Bug::OverlapsAtTheEnd,
    &[Op::malloc(7, Domain::Raw, 100), Op::malloc(1, Domain::Raw, 8)],
    Some(1),
    Fault::Overlap { address: 0, slot: 7, start: 0, size: 100 }
)]
#[case(
    Bug::SharesZeroSizes,
    &[Op::malloc(0, Domain::Raw, 0), Op::malloc(1, Domain::Raw, 0)],
    Some(1),
    Fault::Overlap { address: 0, slot: 0, start: 0, size: 0 }
)]
#[case(
    Bug::LeavesDirt,
    &[Op::malloc(0, Domain::Raw, 9), Op::calloc(1, Domain::Raw, 24)],
    Some(1),
    Fault::NotZeroed { offset: 23, found: 0xa5 }
)]
#[case(
    Bug::LosesLastByte,
    &[Op::malloc(0, Domain::Raw, 24), Op::realloc(0, Domain::Raw, 100)],
    Some(1),
    Fault::ContentLost { offset: 23, kept: 24 }
)]
#[case(
    Bug::LosesLastByte,
    &[Op::malloc(0, Domain::Raw, 100), Op::realloc(0, Domain::Raw, 13)],
    Some(1),
    Fault::ContentLost { offset: 12, kept: 13 }
)]
#[case(
    Bug::CopiesFromTheWrongPlace,
    &[Op::malloc(0, Domain::Raw, 64), Op::realloc(0, Domain::Raw, 64)],
    Some(1),
    Fault::ContentLost { offset: 0, kept: 64 }
)]
#[case(
    Bug::CopiesAnotherBlock,
    &[Op::malloc(0, Domain::Raw, 1), Op::malloc(1, Domain::Raw, 1), Op::realloc(0, Domain::Raw, 8)],
    Some(2),
    Fault::ContentLost { offset: 0, kept: 1 }
)]
#[case(
    Bug::TouchesOnFailure,
    &[Op::malloc(0, Domain::Raw, 24), Op::realloc(0, Domain::Raw, 25)],
    Some(1),
    Fault::FailedReallocTouched { offset: 0 }
)]
#[case(
    Bug::ScribblesOnFree,
    &[Op::malloc(0, Domain::Raw, 24), Op::malloc(3, Domain::Raw, 40), Op::free(0, Domain::Raw), Op::realloc(3, Domain::Raw, 41)],
    Some(3),
    Fault::Changed { slot: 3, size: 40, offset: 0 }
)]
#[case(
    Bug::ScribblesOnMalloc,
    &[Op::malloc(0, Domain::Raw, 24), Op::malloc(1, Domain::Raw, 1), Op::free(0, Domain::Raw)],
    Some(2),
    Fault::Changed { slot: 0, size: 24, offset: 23 }
)]
#[case(
    Bug::ScribblesOnMalloc,
    &[Op::calloc(5, Domain::Raw, 24), Op::malloc(1, Domain::Raw, 1)],
    None,
    Fault::Changed { slot: 5, size: 24, offset: 23 }
)]
fn each_class_of_error_is_seen(
    #[case] bug: Bug,
    #[case] ops: &[Op],
    #[case] seen_at: Option<usize>,
    #[case] expected: Fault,
) {
    let ModelError { index, op, fault } = run(ops, &Flawed::new(bug)).expect_err("a bug");
    assert_eq!(without_addresses(fault), expected);
    assert_eq!(index, seen_at.unwrap_or(ops.len()));
    assert_eq!(op, seen_at.map(|at| ops[at]));
    assert_eq!(run(ops, &Flawed::new(Bug::None)).map(|summary| summary.failed), Ok(0));
}

/// Each block's pattern differs from the next one's, in its first word.
#[test]
fn neighbouring_blocks_differ() {
    let mut ops = Vec::new();
    for _ in 0..32 {
        let pair = [Op::malloc(0, Domain::Raw, 8), Op::malloc(1, Domain::Raw, 8)];
        let confused = [&ops[..], &pair, &[Op::realloc(0, Domain::Raw, 8)]].concat();
        let seen =
            run(&confused, &Flawed::new(Bug::CopiesAnotherBlock)).map_err(|error| error.fault);
        assert!(matches!(seen, Err(Fault::ContentLost { .. })), "{seen:?}");
        ops.push(Op::malloc(2, Domain::Raw, 8));
    }
}

/// Random programs see every bug too.
#[rstest]
fn random_programs_see_each_bug(
    #[values(
        Bug::Misaligns,
        Bug::Overlaps,
        Bug::OverlapsAtTheEnd,
        Bug::SharesZeroSizes,
        Bug::LeavesDirt,
        Bug::LosesLastByte,
        Bug::CopiesFromTheWrongPlace,
        Bug::CopiesAnotherBlock,
        Bug::TouchesOnFailure,
        Bug::ScribblesOnFree,
        Bug::ScribblesOnMalloc
    )]
    bug: Bug,
) {
    for seed in 0..5 {
        let ops = generate::random(seed, 10_000, 2000);
        let seen = run(&ops, &Flawed::new(bug));
        assert!(seen.is_err(), "seed {seed} does not see {bug:?}");
    }
}

#[test]
fn the_error_says_what_and_where() {
    let ops = [Op::malloc(0, Domain::Obj, 9), Op::calloc(1, Domain::Obj, 24)];
    let error = run(&ops, &Flawed::new(Bug::LeavesDirt)).expect_err("a bug");
    assert_eq!(
        error.to_string(),
        "operation 1 (calloc obj slot 1, 24 bytes): the byte at offset 23 is 0xa5; expected zeroed memory"
    );
}

#[test]
fn check_all_sees_an_untouched_block() {
    let flawed = Flawed::new(Bug::ScribblesOnMalloc);
    let mut model = ShadowModel::new([&flawed; 3]);
    model.step(Op::malloc(0, Domain::Raw, 10)).expect("nothing to see yet");
    assert_eq!(model.check_all(), Ok(()));
    model.step(Op::malloc(1, Domain::Raw, 10)).expect("the damage is elsewhere");
    assert_eq!(model.check_all(), Err(Fault::Changed { slot: 0, size: 10, offset: 9 }));
}

#[test]
fn any_sequence_is_a_program() {
    let counting = Counting::new(LibcMalloc);
    let ops = [
        Op::free(9, Domain::Raw),
        Op::realloc(0, Domain::Raw, 10),
        Op::malloc(0, Domain::Raw, 20),
        Op::calloc(0, Domain::Raw, 30),
        Op::realloc(0, Domain::Raw, 0),
        Op::malloc(u32::MAX, Domain::Raw, 1),
        Op::free(0, Domain::Raw),
        Op::free(0, Domain::Raw),
    ];
    let summary = run(&ops, &counting).expect("a correct allocator");
    assert_eq!((summary.ops, summary.failed), (8, 0));
    assert_eq!((summary.live_blocks, summary.live_bytes), (1, 1));
    assert_eq!((summary.peak_blocks, summary.peak_bytes), (2, 30));
    let counts = counting.counts();
    assert_eq!((counts.malloc, counts.calloc, counts.realloc, counts.live_blocks), (2, 1, 2, 0));
    assert_eq!(counts.free, 1 + 2 + 2 + 1, "free(None) reaches the allocator");
}

#[test]
fn blocks_stay_in_their_domain() {
    let domains = [0, 1, 2].map(|_| Counting::new(LibcMalloc));
    let ops = [
        Op::malloc(0, Domain::Raw, 10),
        Op::malloc(1, Domain::Mem, 10),
        Op::malloc(2, Domain::Obj, 10),
        Op::realloc(0, Domain::Obj, 20),
        Op::free(1, Domain::Raw),
    ];
    run_domains(&ops, [&domains[0], &domains[1], &domains[2]]).expect("a correct allocator");
    let counts = domains.map(|domain| domain.counts());
    assert_eq!(counts.map(|c| (c.malloc, c.realloc, c.free)), [(1, 1, 1), (1, 0, 1), (1, 0, 1)]);
}

/// Every failure point of a random program: nothing is lost, nothing is touched.
#[test]
fn out_of_memory_is_no_fault() {
    let ops = generate::random(3, 200, 600);
    let mut failures = 0;
    for start in 0.. {
        let failing = FailAfter::new(Counting::new(LibcMalloc), start);
        let summary = run(&ops, &failing).expect("a correct allocator");
        assert_eq!(summary.failed, failing.failures());
        assert_eq!(failing.inner().counts().live_blocks, 0);
        failures += summary.failed;
        if failing.failures() == 0 {
            break;
        }
    }
    assert!(failures > 1000);
}

#[test]
fn sizes_that_nobody_serves_are_counted() {
    struct Small;
    // SAFETY: it serves what the C library serves, but nothing above 1,000 bytes.
    unsafe impl Malloc for Small {
        fn malloc(&self, size: usize) -> Option<std::ptr::NonNull<u8>> {
            LibcMalloc.malloc(if size > 1000 { MAX_REQUEST + 1 } else { size })
        }
        fn calloc(&self, nelem: usize, elsize: usize) -> Option<std::ptr::NonNull<u8>> {
            LibcMalloc.calloc(nelem, elsize)
        }
        unsafe fn realloc(
            &self,
            ptr: Option<std::ptr::NonNull<u8>>,
            new_size: usize,
        ) -> Option<std::ptr::NonNull<u8>> {
            // SAFETY: the caller's duties are those of `LibcMalloc`.
            unsafe { LibcMalloc.realloc(ptr, new_size) }
        }
        unsafe fn free(&self, ptr: Option<std::ptr::NonNull<u8>>) {
            // SAFETY: the caller's duties are those of `LibcMalloc`.
            unsafe { LibcMalloc.free(ptr) }
        }
    }
    let summary =
        run(&[Op::malloc(0, Domain::Raw, 1000), Op::malloc(1, Domain::Raw, 1001)], &Small);
    assert_eq!(summary.map(|summary| (summary.failed, summary.peak_blocks)), Ok((1, 1)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// The C library's allocator is right whatever is done to it, and blocks are counted right.
    #[test]
    fn arbitrary_programs_on_libc(bits in prop::collection::vec(any::<u64>(), 0..300)) {
        let ops: Vec<Op> =
            bits.iter().map(|&bits| generate::op_from_bits(bits, 12, 5000)).collect();
        let counting = Counting::new(LibcMalloc);
        let summary = run(&ops, &counting)?;
        prop_assert_eq!(summary.ops, ops.len());
        prop_assert_eq!(summary.failed, 0);
        prop_assert_eq!(counting.counts().live_blocks, 0);
        prop_assert_eq!(counting.counts().peak_blocks, summary.peak_blocks);
    }
}
