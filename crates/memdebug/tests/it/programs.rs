//! Programs without a bug: the contract, random programs, and running out of memory.

use malloc_api::testing::{Counting, FailAfter, conformance};
use malloc_api::{LibcMalloc, MAX_REQUEST, Malloc};
use malloc_trace::{generate, run, run_domains};
use memdebug::{DebugHooks, Domain};
use proptest::prelude::*;
use rstest::rstest;

use crate::support::{COLLECTING, Layered, hooks, options, seen};

const OPTIONS: [&str; 8] = [
    "",
    "serial",
    "full_erase",
    "serial,full_erase",
    "quarantine=64K",
    "strict,serial",
    "backtrace=3,quarantine=1M:100",
    "guard=1/2,registry",
];

#[rstest]
fn conforms(#[values(0, 1, 2, 3, 4, 5, 6, 7)] index: usize) {
    let hooks = hooks(Domain::Mem, OPTIONS[index]);
    conformance(&hooks);
    hooks.release_quarantine();
    assert!(seen().is_empty());
}

#[rstest]
fn conforms_in_a_free_threaded_host() {
    let host = COLLECTING.with_debug_offset(|_| 40);
    for domain in Domain::ALL {
        conformance(&DebugHooks::new(LibcMalloc, domain).with_host(host));
        let strict = DebugHooks::new(LibcMalloc, domain).with_host(host);
        let strict = strict.with_options(&options("strict")).unwrap();
        conformance(&strict);
        strict.release_quarantine();
    }
    assert!(seen().is_empty());
}

#[rstest]
fn random_programs(#[values(0, 1, 2, 3, 4, 5, 6, 7)] index: usize) {
    let counting = Counting::new(LibcMalloc);
    let hooks = Layered::new(&counting, COLLECTING, Domain::Obj, OPTIONS[index]);
    for seed in 0..8 {
        let ops = generate::random(seed, 4000, 3000);
        run(&ops, &hooks).unwrap();
    }
    hooks.release_quarantine();
    assert!(seen().is_empty());
    assert_eq!(counting.counts().live_blocks, 0, "every block went back");
}

#[test]
fn three_domains_at_once() {
    let all = Domain::ALL.map(|domain| hooks(domain, "strict,guard=1/7"));
    let [raw, mem, obj] = &all;
    run_domains(&generate::random(3, 20_000, 700), [raw, mem, obj]).unwrap();
    assert!(seen().is_empty());
}

#[test]
fn threads_share_a_strict_allocator() {
    let hooks = hooks(Domain::Raw, "strict,guard=1/50,backtrace=2");
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let hooks = &hooks;
            scope.spawn(move || {
                run(&generate::random(seed, 10_000, 900), hooks).unwrap();
                assert!(seen().is_empty());
            });
        }
    });
    hooks.release_quarantine();
    assert!(seen().is_empty());
}

/// Every failure point of a program: nothing is lost, nothing freed twice, nothing reported.
#[rstest]
fn out_of_memory(#[values(0, 1, 2, 3, 4, 5, 6, 7)] index: usize) {
    let ops = generate::random(11, 120, 600);
    for start in 0.. {
        let failing = FailAfter::new(Counting::new(LibcMalloc), start);
        let hooks = Layered::new(&failing, COLLECTING, Domain::Mem, OPTIONS[index]);
        run(&ops, &hooks).unwrap();
        hooks.release_quarantine();
        assert!(seen().is_empty());
        if failing.failures() == 0 {
            assert!(start > 20, "the program allocates");
            break;
        }
    }
}

#[rstest]
fn sizes_that_cannot_be(#[values("", "serial", "strict")] text: &str) {
    let counting = Counting::new(LibcMalloc);
    let hooks = DebugHooks::new(&counting, Domain::Mem).with_options(&options(text)).unwrap();
    let most = MAX_REQUEST - if text == "serial" { 32 } else { 24 };
    let block = hooks.malloc(9);
    for size in [most + 1, MAX_REQUEST, usize::MAX] {
        assert_eq!(hooks.malloc(size), None);
        assert_eq!(hooks.calloc(1, size), None);
        assert_eq!(hooks.calloc(size, 1), None);
        // SAFETY: live, and stays so.
        assert_eq!(unsafe { hooks.realloc(block, size) }, None);
    }
    assert_eq!(hooks.calloc(usize::MAX, 2), None);
    assert_eq!(
        counting.counts().calls(),
        1,
        "the allocator below was asked for the first block alone"
    );
    // SAFETY: live, and not used again.
    unsafe { hooks.free(block) };
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_program(bytes in proptest::collection::vec(any::<u8>(), 0..4000), index in 0..OPTIONS.len()) {
        let hooks = hooks(Domain::Mem, OPTIONS[index]);
        let ops = generate::ops_from_bytes(&bytes, 32, 5000);
        prop_assert!(run(&ops, &hooks).is_ok());
        hooks.release_quarantine();
        prop_assert!(seen().is_empty());
    }
}
