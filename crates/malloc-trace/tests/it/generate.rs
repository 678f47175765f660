//! Generated programs are the same for the same seed, have the shape that their documents say, and run.

use std::collections::{HashMap, HashSet};

use malloc_api::LibcMalloc;
use malloc_trace::generate::{self, Histogram};
use malloc_trace::{Domain, Event, Op, OpKind, Trace, run};
use proptest::prelude::*;
use rstest::rstest;

#[test]
fn random_programs_have_what_tests_need() {
    let ops = generate::random(1, 50_000, 100_000);
    assert_eq!(ops.len(), 50_000);
    assert_eq!(ops, generate::random(1, 50_000, 100_000));
    assert_ne!(ops, generate::random(2, 50_000, 100_000));
    for kind in [OpKind::Malloc, OpKind::Calloc, OpKind::Realloc, OpKind::Free] {
        let share = ops.iter().filter(|op| op.kind() == kind).count();
        assert!(share > 1500, "{kind:?}: {share}");
    }
    for domain in Domain::ALL {
        assert!(ops.iter().filter(|op| op.domain() == domain).count() > 10_000);
    }
    for size in [0, 1, 15, 16, 17, 511, 512, 513, 4096, 16_385] {
        assert!(ops.iter().any(|op| op.size() == size), "no size {size}");
    }
    assert!(ops.iter().any(|op| op.size() > 50_000));
    let summary = run(&ops, &LibcMalloc).expect("a correct allocator");
    assert_eq!(summary.failed, 0);
    assert!(summary.peak_blocks > 500, "{summary:?}");
}

/// A program both fills and empties what it allocates.
#[test]
fn random_programs_grow_and_shrink() {
    let (mut live, mut peak, mut lowest_after_peak) = (0_i64, 0, i64::MAX);
    for op in generate::random(4, 20_000, 100) {
        live += match op.kind() {
            OpKind::Malloc | OpKind::Calloc => 1,
            OpKind::Free => -1,
            OpKind::Realloc => 0,
        };
        if live > peak {
            (peak, lowest_after_peak) = (live, live);
        }
        lowest_after_peak = lowest_after_peak.min(live);
    }
    assert!(lowest_after_peak < peak / 2, "{lowest_after_peak} of {peak}");
}

proptest! {
    #[test]
    fn random_programs_keep_their_limits(seed: u64, n_ops in 0_usize..500, max_size in 0_usize..5000) {
        let ops = generate::random(seed, n_ops, max_size);
        prop_assert_eq!(ops.len(), n_ops);
        prop_assert!(ops.iter().all(|op| op.size() <= max_size));
    }

    #[test]
    fn every_bit_pattern_is_an_operation(bits: u64, slots: u32, max_size: usize) {
        let op = generate::op_from_bits(bits, slots, max_size);
        prop_assert!(op.slot() < slots.max(1) && op.size() <= max_size);
        let bytes = bits.to_le_bytes();
        prop_assert_eq!(generate::ops_from_bytes(&bytes, slots, max_size), [op]);
        prop_assert!(generate::ops_from_bytes(&bytes[1..], slots, max_size).is_empty());
    }
}

/// The low four bits choose kind and domain; a fourth domain that there is not stands for the first.
#[test]
fn bits_choose_every_kind_and_domain() {
    let ops: Vec<Op> = (0..16).map(|bits| generate::op_from_bits(bits, 1, 0)).collect();
    for (index, domain) in Domain::ALL.into_iter().chain([Domain::Raw]).enumerate() {
        let expected = [
            Op::malloc(0, domain, 0),
            Op::free(0, domain),
            Op::realloc(0, domain, 0),
            Op::calloc(0, domain, 0),
        ];
        assert_eq!(ops[4 * index..][..4], expected);
    }
}

fn free_by_another_thread(events: &[Event]) -> f64 {
    let mut owners: HashMap<u32, u16> = HashMap::new();
    let (mut frees, mut foreign) = (0, 0);
    for event in events {
        match event.op.kind() {
            OpKind::Free => {
                frees += 1;
                foreign += usize::from(owners.remove(&event.op.slot()) != Some(event.thread));
            }
            _ => assert_eq!(owners.insert(event.op.slot(), event.thread), None, "a live slot"),
        }
    }
    foreign as f64 / f64::from(frees)
}

/// The share of blocks that another thread frees, and the sizes, are those of the original loads.
#[rstest]
#[case::larson(generate::larson(1, 4, 1_000_000), 0.001..0.02, 10..=500)]
#[case::mstress(generate::mstress(1, 4, 100_000), 0.01..0.2, 8..=25_600)]
#[case::xmalloc(generate::xmalloc(1, 4, 100_000), 1.0..1.1, 16..=512)]
#[case::cache_scratch(generate::cache_scratch(4, 100_000), 0.0..0.001, 8..=8)]
#[case::sh6bench(generate::sh6bench(4, 100_000), 0.0..0.001, 1..=1000)]
fn loads_have_their_shape(
    #[case] events: Vec<Event>,
    #[case] foreign: std::ops::Range<f64>,
    #[case] sizes: std::ops::RangeInclusive<usize>,
) {
    assert!(matches!(events.len(), 100_000 | 1_000_000));
    let threads: HashSet<u16> = events.iter().map(|event| event.thread).collect();
    assert_eq!(threads, HashSet::from([0, 1, 2, 3]));
    let share = free_by_another_thread(&events);
    assert!(foreign.contains(&share), "{share}");
    let new = events.iter().filter(|event| event.op.kind() != OpKind::Free);
    assert!(new.clone().all(|event| sizes.contains(&event.op.size())));
    let largest = new.map(|event| event.op.size()).max();
    assert!(largest.is_some_and(|largest| largest > sizes.end() / 2));
    let ops: Vec<Op> = events.iter().map(|event| event.op).collect();
    run(&ops, &LibcMalloc).expect("a correct allocator");
}

#[rstest]
fn loads_take_any_size(#[values(0, 1, 7)] n_ops: usize, #[values(0, 1, 3)] threads: u16) {
    let loads = [
        generate::larson(1, threads, n_ops),
        generate::mstress(1, threads, n_ops),
        generate::xmalloc(1, threads, n_ops),
        generate::cache_scratch(threads, n_ops),
        generate::sh6bench(threads, n_ops),
    ];
    assert!(loads.iter().all(|events| events.len() == n_ops));
}

#[test]
fn a_fitted_program_has_the_proportions_of_its_trace() {
    // 60 % malloc(56) obj, 20 % calloc(1000) raw, 20 % realloc to 300; 100 live at most.
    let trace = (0..100_u32).flat_map(|slot| {
        [
            Op::malloc(3 * slot % 100, Domain::Obj, 56),
            Op::malloc((3 * slot + 1) % 100, Domain::Obj, 56),
            Op::calloc((3 * slot + 2) % 100, Domain::Raw, 1000),
            Op::realloc(3 * slot % 100, Domain::Obj, 300),
            Op::malloc(3 * slot % 100, Domain::Obj, 56),
        ]
    });
    let trace = Trace::new(trace.collect());
    let histogram = Histogram::of(&trace);
    assert_eq!(histogram.sizes(), [(56, 300), (300, 100), (1000, 100)]);
    assert_eq!(histogram.peak_blocks(), 100);

    let ops = generate::fitted(1, 100_000, &histogram);
    assert_eq!(ops, generate::fitted(1, 100_000, &histogram));
    let fitted = Histogram::of(&Trace::new(ops.clone()));
    assert_eq!(fitted.peak_blocks(), 100);
    let share = |op: Op| {
        let same = |other: &&Op| other.with_slot(0) == op;
        ops.iter().filter(same).count() as f64
    };
    let malloc = share(Op::malloc(0, Domain::Obj, 56));
    let calloc = share(Op::calloc(0, Domain::Raw, 1000));
    assert!((malloc / calloc - 3.0).abs() < 0.1, "{}", malloc / calloc);
    let realloc = share(Op::realloc(0, Domain::Obj, 300)) + share(Op::realloc(0, Domain::Raw, 300));
    assert!(realloc > 0.2 * malloc);
    run(&ops, &LibcMalloc).expect("a correct allocator");

    let short = Histogram::of(&Trace::new(generate::fitted(1, 60, &histogram)));
    assert_eq!(short.peak_blocks(), 20, "a third of the operations");
    assert!(generate::fitted(1, 100, &Histogram::default()).is_empty());
    assert!(generate::fitted(1, 0, &histogram).is_empty());
}
