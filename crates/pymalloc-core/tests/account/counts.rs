//! The exact counts of an account.

use std::ptr::NonNull;

use malloc_api::{Budget, LibcMalloc, Malloc, Usage};
use pymalloc_core::{LocalPymalloc, POOL_BYTES, POOLED_MAX, SizeClass, Stats, local_account};
use rstest::rstest;

use crate::free;

/// The bytes that the account says a block of `size` has.
fn counted_bytes(size: usize) -> usize {
    SizeClass::of(size).map_or(size, SizeClass::size)
}

#[rstest]
#[case::pooled(1, POOLED_MAX)]
#[case::all(2, 8 * POOLED_MAX)]
fn counts_are_those_of_a_model(#[case] seed: u64, #[case] max: usize) {
    let budget = Budget::new(usize::MAX);
    let account = local_account(&budget);
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut live: Vec<(NonNull<u8>, usize)> = Vec::new();
    for step in 0..20_000 {
        let size = rng.usize(0..=max) >> rng.u32(0..10);
        let keep = if step % 10_000 < 6_000 { 60 } else { 40 };
        if live.is_empty() || rng.u32(0..100) < keep {
            live.push((account.malloc(size).unwrap(), counted_bytes(size)));
        } else {
            let at = rng.usize(..live.len());
            let (block, bytes) = live.swap_remove(at);
            if rng.bool() {
                free(&account, block);
            } else {
                // SAFETY: 1: live; 2: replaced below.
                let moved = unsafe { account.realloc(Some(block), size) }.unwrap();
                // A block of the fallback stays there, and one of the pools as long as it fits well.
                let pooled = account.pools().block_size(moved.as_ptr());
                live.push((moved, pooled.unwrap_or(size)));
                assert!(bytes > 0 || pooled.is_none());
            }
        }
        if step % 500 == 0 {
            let usage = account.usage();
            assert_eq!(usage.blocks, live.len());
            assert_eq!(usage.bytes, live.iter().map(|(_, bytes)| bytes).sum::<usize>());
            assert!(usage.bytes <= budget.held());
        }
    }
    live.into_iter().for_each(|(block, _)| free(&account, block));
    account.pools().check_invariants();
    assert_eq!(account.usage(), Usage::default());
}

#[test]
fn a_block_of_the_pools_costs_nothing_more() {
    let budget = Budget::new(usize::MAX);
    let account = local_account(&budget);
    let plain = LocalPymalloc::new(LibcMalloc);
    for _ in 0..1_000_000 {
        account.malloc(48).unwrap();
        plain.malloc(48).unwrap();
    }
    // Pools beside the records of an arena have a block more or less.
    let in_use = |stats: Stats| stats.classes.map(|class| class.blocks_in_use);
    assert_eq!(in_use(account.pools().stats()), in_use(plain.stats()));
    assert_eq!(budget.held(), account.pools().stats().classes[2].pools * POOL_BYTES);
    assert!(budget.held() < 48_500_000, "{}", budget.held());
    assert_eq!(account.usage().bytes, 48_000_000);
}
