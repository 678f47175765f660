//! Accounts on heaps of their own: exact counts, limits that hold in one account alone, and the end of everything at once.

use std::ptr::NonNull;
use std::sync::Arc;
use std::thread;

use malloc_api::testing::{conformance, resident_bytes};
use malloc_api::{Account, Budget, Malloc, ToBudget, Usage};
use mimalloc_heaps::{MiMalloc, OwnHeap, heap_account};
use rstest::rstest;
use static_assertions::assert_not_impl_any;

// The heap is its thread's.
assert_not_impl_any!(Account<OwnHeap<&'static Budget>>: Send, Sync);

fn free(account: &impl Malloc, block: NonNull<u8>) {
    // SAFETY: (1) the tests free live blocks, (2) once.
    unsafe { account.free(Some(block)) };
}

/// The bytes of a live block of any heap.
fn bytes_of(block: NonNull<u8>) -> usize {
    // SAFETY: (1) the tests ask for live blocks.
    unsafe { MiMalloc.usable_size(block) }
}

/// Allocates blocks of `size` bytes until the account is full, and returns how many.
fn fill<B: ToBudget>(account: &Account<OwnHeap<B>>, size: usize) -> usize {
    core::iter::from_fn(|| account.malloc(size)).count()
}

#[test]
fn an_account_conforms() {
    let budget = Budget::new(usize::MAX);
    let account = heap_account(&budget).unwrap();
    conformance(&account);
    assert_eq!(account.usage(), Usage::default());
    drop(account);
    assert_eq!(budget.held(), 0);
}

#[rstest]
#[case::small(1, 1 << 10)]
#[case::medium(2, 1 << 16)]
#[case::large(3, 1 << 21)]
fn counts_are_those_of_a_model(#[case] seed: u64, #[case] max: usize) {
    let budget = Budget::new(1 << 30);
    let account = heap_account(&budget).unwrap();
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut live: Vec<NonNull<u8>> = Vec::new();
    for step in 0..10_000 {
        let size = rng.usize(0..=max) >> rng.u32(0..12);
        if live.is_empty() || rng.u32(0..100) < 60 {
            live.push(account.malloc(size).unwrap());
        } else {
            let at = rng.usize(..live.len());
            let block = live.swap_remove(at);
            if rng.bool() {
                free(&account, block);
            } else {
                // SAFETY: (1) live; (2) replaced here.
                live.push(unsafe { account.realloc(Some(block), size) }.unwrap());
            }
        }
        if step % 100 == 0 {
            let bytes = live.iter().map(|block| bytes_of(*block)).sum();
            assert_eq!(account.usage(), Usage { blocks: live.len(), bytes });
            assert!(bytes <= budget.held(), "{bytes} of {}", budget.held());
        }
    }
    live.into_iter().for_each(|block| free(&account, block));
    assert_eq!(account.usage(), Usage::default());
}

#[rstest]
#[case::half_of_it_lost(17)]
#[case::one_size(64)]
#[case::medium(5000)]
#[case::large(100_000)]
fn a_limit_is_met_to_the_block(#[case] size: usize, #[values(0, 1)] missing: usize) {
    const LIMIT: usize = 3 << 20;
    let limit = LIMIT - missing;
    let budget = Budget::new(limit);
    let account = heap_account(&budget).unwrap();
    let blocks = fill(&account, size);
    let bytes = account.usage().bytes;
    assert_eq!(blocks, limit / (bytes / blocks), "no block more fits, nor one less");
    assert!(bytes <= budget.held() && budget.held() <= limit, "{bytes}: {budget:?}");
    assert!(account.calloc(1, LIMIT).is_none() && account.malloc(size).is_none());
}

/// A block that moves draws on the budget as a new one does.
#[test]
fn blocks_grow_up_to_the_limit() {
    let budget = Budget::new(3 << 20);
    let account = heap_account(&budget).unwrap();
    let blocks: Vec<_> = (0..1_000).map(|_| account.malloc(16).unwrap()).collect();
    // SAFETY: (1) live; (2) not used again where it moves.
    let grown = |block| unsafe { account.realloc(Some(block), 5_000) }.is_some();
    let grown = blocks.into_iter().filter(|block| grown(*block)).count();
    assert!((590..=614).contains(&grown), "{grown} blocks have grown");
    assert!(account.usage().bytes <= budget.held() && budget.held() <= budget.limit());
}

#[test]
fn a_full_account_serves_what_it_gets_back() {
    let budget = Budget::new(1 << 20);
    let account = heap_account(&budget).unwrap();
    let blocks: Vec<_> = core::iter::from_fn(|| account.malloc(1000)).collect();
    // SAFETY: (1) live; it stays so.
    assert!(unsafe { account.realloc(Some(blocks[0]), 3000) }.is_none());
    // SAFETY: (1) live; it stays where it is, since there is no room for a smaller one.
    assert_eq!(unsafe { account.realloc(Some(blocks[0]), 10) }, Some(blocks[0]));
    free(&account, blocks[1]);
    assert!(account.malloc(1000).is_some() && account.malloc(1000).is_none());
    blocks.into_iter().skip(2).for_each(|block| free(&account, block));
    assert!(account.malloc(900 << 10).is_some(), "what was freed serves other sizes");
}

#[test]
fn one_of_a_thousand_accounts_meets_its_limit_alone() {
    const LIMIT: usize = 100_000;
    let budgets: Vec<Budget> = (0..1_000).map(|_| Budget::new(LIMIT)).collect();
    let accounts: Vec<_> = budgets.iter().map(|budget| heap_account(budget).unwrap()).collect();
    for account in &accounts {
        assert!((0..100).all(|_| account.malloc(100).is_some()));
    }
    assert!(fill(&accounts[500], 16) > 5_000);
    for (index, account) in accounts.iter().enumerate() {
        assert_eq!(account.malloc(16).is_some(), index != 500);
        assert!(account.usage().bytes <= budgets[index].held() && budgets[index].held() <= LIMIT);
    }
    budgets[500].set_limit(2 * LIMIT);
    assert!(accounts[500].malloc(16).is_some());
}

#[test]
fn accounts_share_a_budget_over_threads() {
    const LIMIT: usize = 8 << 20;
    let budget = Arc::new(Budget::new(LIMIT));
    let blocks: usize = thread::scope(|scope| {
        let threads = [(); 4].map(|()| {
            scope.spawn(|| {
                let account = heap_account(Arc::clone(&budget)).unwrap();
                let blocks = fill(&account, 4096);
                assert!(account.usage().bytes <= LIMIT);
                blocks
            })
        });
        threads.map(|thread| thread.join().unwrap()).iter().sum()
    });
    // What one account holds ahead may have another one refused, a block early each.
    assert!(blocks >= LIMIT / 4096 - 4, "{blocks}");
    assert_eq!(budget.held(), 0);
}

/// 50 accounts of 64 MiB one after the other, each dropped with all of its blocks.
#[test]
fn the_end_of_an_account_ends_everything() {
    let budget = Budget::new(usize::MAX);
    let before = resident_bytes();
    for round in 0..50 {
        let account = heap_account(&budget).unwrap();
        for _ in 0..(64 << 20) / 4096 {
            let block = account.malloc(4000 + round).unwrap();
            // SAFETY: a live block.
            unsafe { block.write(1) };
        }
        assert!(account.malloc(32 << 20).is_some());
    }
    assert_eq!(budget.held(), 0);
    // Other tests of the program run at the same time.
    assert!(resident_bytes() < before + (1 << 30), "{} and {before}", resident_bytes());
}

/// A thread may end with an account that it forgot: its blocks stay.
#[test]
fn a_forgotten_account_keeps_its_memory() {
    let budget = Arc::new(Budget::new(1 << 20));
    let thread = thread::spawn({
        let budget = Arc::clone(&budget);
        move || {
            let account = heap_account(budget).unwrap();
            let block = account.malloc(100).unwrap();
            // SAFETY: a live block of 100 bytes.
            unsafe { block.write_bytes(7, 100) };
            std::mem::forget(account);
            block.as_ptr().expose_provenance()
        }
    });
    let block = core::ptr::with_exposed_provenance::<u8>(thread.join().unwrap());
    // SAFETY: live for ever, and initialised.
    assert_eq!(unsafe { block.read() }, 7);
    assert!(budget.held() > 0);
}

/// The destructors of a thread may be the last to hold an account.
#[test]
fn an_account_in_a_thread_local_ends_with_its_thread() {
    thread_local! {
        static ACCOUNT: core::cell::OnceCell<Account<OwnHeap<Arc<Budget>>>> =
            const { core::cell::OnceCell::new() };
    }
    let budget = Arc::new(Budget::new(1 << 20));
    let thread = thread::spawn({
        let budget = Arc::clone(&budget);
        move || {
            ACCOUNT.with(|account| {
                let account = account.get_or_init(|| heap_account(budget).unwrap());
                assert!((0..1000).all(|_| account.malloc(100).is_some()));
            });
        }
    });
    thread.join().unwrap();
    assert_eq!(budget.held(), 0);
}
