//! Accounts: exact counts, limits that hold in one account alone, and the end of everything at once.
//!
//! A program of its own: in `it` tests measure resident memory, of which a program's code is a part.

// A red zone takes room of its own, so the exact counts are those of builds without.
#[cfg(not(any(feature = "asan", feature = "valgrind")))]
mod counts;
#[cfg(not(any(feature = "asan", feature = "valgrind")))]
mod end;

use std::cell::Cell;
use std::collections::HashMap;
use std::ptr::NonNull;
use std::sync::Arc;
use std::thread;

use allocator_api2::vec::Vec as Vec04;
use allocator_api2_02::vec::Vec as Vec02;
use malloc_api::testing::{Counting, FailAfter, conformance};
use malloc_api::{Account, AllocatorAdapter, Budget, LibcMalloc, Malloc, Pools, Scoped, enter};
use pymalloc_core::{
    ARENA_BYTES, ArenaSource, BudgetedArenas, LargeBlocks, LocalPymalloc, MmapArenas, POOL_BYTES,
    local_account, locked_account,
};

/// Bytes below each large block.
const HEADER_BYTES: usize = 32;

/// Arenas that are counted; without a span, so that the allocator's table of arenas comes from the fallback.
#[derive(Default)]
struct Counted {
    arenas: Cell<usize>,
}

// SAFETY: 1, 2, 5, 6: those of the other source; 3, 4: none.
unsafe impl ArenaSource for &Counted {
    fn alloc(&self, size: usize) -> Option<NonNull<u8>> {
        self.arenas.set(self.arenas.get() + 1);
        MmapArenas::new().alloc(size)
    }

    unsafe fn free(&self, arena: NonNull<u8>, size: usize) {
        self.arenas.set(self.arenas.get() - 1);
        // SAFETY: 1: the caller's.
        unsafe { MmapArenas::new().free(arena, size) };
    }
}

fn free<A: Malloc>(alloc: &A, block: NonNull<u8>) {
    // SAFETY: 1: the tests free live blocks; 2: once.
    unsafe { alloc.free(Some(block)) };
}

#[test]
fn accounts_conform() {
    let budget = Budget::new(usize::MAX);
    let (local, locked) = (local_account(&budget), locked_account(&budget));
    conformance(&local);
    conformance(&locked);
    local.pools().check_invariants();
    assert_eq!([local.usage().blocks, locked.usage().blocks], [0; 2]);
    drop((local, locked));
    assert_eq!(budget.held(), 0);
}

#[test]
fn one_of_a_thousand_accounts_meets_its_limit_alone() {
    const LIMIT: usize = 4 * POOL_BYTES;
    let budgets: Vec<Budget> = (0..1_000).map(|_| Budget::new(LIMIT)).collect();
    let accounts: Vec<_> = budgets.iter().map(local_account).collect();
    for account in &accounts {
        // One pool has these, also the one beside the records and with red zones.
        assert!((0..90).all(|_| account.malloc(100).is_some()));
    }
    let full = &accounts[500];
    while full.malloc(100).is_some() {}
    assert_eq!(budgets[500].held(), LIMIT);
    // Nothing more of any kind here, and everything elsewhere.
    assert!([0, 1, 100, 5000, 20_000].iter().all(|size| full.malloc(*size).is_none()));
    for (index, account) in accounts.iter().enumerate().filter(|(index, _)| *index != 500) {
        assert!([0, 1, 100, 5000, 20_000].iter().all(|size| account.malloc(*size).is_some()));
        assert!(budgets[index].held() < LIMIT);
    }
    // A higher limit is as good as free memory.
    budgets[500].set_limit(2 * LIMIT);
    assert!(full.malloc(100).is_some());
}

#[test]
fn a_full_account_serves_what_it_gets_back() {
    let budget = Budget::new(4 * POOL_BYTES);
    let account = local_account(&budget);
    let blocks: Vec<_> = core::iter::from_fn(|| account.malloc(64)).collect();
    assert!(account.malloc(5000).is_none());
    // SAFETY: 1: live; it stays so.
    assert!(unsafe { account.realloc(Some(blocks[0]), 5000) }.is_none());
    blocks.into_iter().for_each(|block| free(&account, block));
    // The pool that the class keeps goes when another one needs its bytes, or a large block.
    let other = account.malloc(5000).unwrap();
    free(&account, other);
    let large = account.malloc(4 * POOL_BYTES - HEADER_BYTES).unwrap();
    assert_eq!(budget.held(), budget.limit());
    // SAFETY: 1: live; it stays so.
    assert!(unsafe { account.realloc(Some(large), 4 * POOL_BYTES) }.is_none());
    // SAFETY: 1: live; 2: not used any more.
    let small = unsafe { account.realloc(Some(large), 20_000) }.unwrap();
    assert_eq!(budget.held(), 20_000 + HEADER_BYTES);
    free(&account, small);
    assert_eq!(budget.held(), 0);
    account.pools().check_invariants();
}

/// The pool that a class keeps without a block goes for another class, and for a large block.
#[test]
fn kept_pools_go_before_a_request_fails() {
    let budget = Budget::new(2 * POOL_BYTES);
    let account = local_account(&budget);
    // Keeps the arena, and one of the two pools.
    account.malloc(64).unwrap();
    for size in [100, 200, 300] {
        free(&account, account.malloc(size).unwrap());
        assert_eq!(budget.held(), 2 * POOL_BYTES, "a pool is kept");
    }
    let large = account.malloc(POOL_BYTES - HEADER_BYTES).unwrap();
    assert!(account.malloc(100).is_none());
    free(&account, large);
    assert!(account.malloc(100).is_some());
}

/// Below a pool the last bytes of a budget go to single blocks.
#[test]
fn a_budget_smaller_than_a_pool_is_used_to_the_end() {
    let budget = Budget::new(1000);
    let account = local_account(&budget);
    let blocks = core::iter::from_fn(|| account.malloc(68)).count();
    assert_eq!((blocks, budget.held(), account.usage().blocks), (10, 1000, 10));
}

#[test]
fn accounts_share_a_budget_over_threads() {
    let budget = Arc::new(Budget::new(64 * POOL_BYTES));
    let blocks: usize = thread::scope(|scope| {
        let threads = [(); 4].map(|()| {
            let budget = Arc::clone(&budget);
            scope.spawn(move || {
                let account = local_account(Arc::clone(&budget));
                let blocks = core::iter::from_fn(|| account.malloc(POOL_BYTES / 4)).count();
                assert!(budget.held() <= budget.limit());
                blocks
            })
        });
        threads.map(|thread| thread.join().unwrap()).iter().sum()
    });
    // A memory checker's red zones take room.
    assert!(blocks > 200, "{blocks}");
    assert_eq!(budget.held(), 0);
}

#[test]
fn the_end_of_an_account_ends_everything() {
    let (source, fallback) = (Counted::default(), Counting::new(LibcMalloc));
    let budget = Budget::new(usize::MAX);
    let account = LocalPymalloc::account(&fallback, &source, &budget);
    let mut sizes = (0..400_000_usize).map(|n| n % 700);
    assert!(sizes.all(|size| account.malloc(size).is_some()));
    let (before, large) = (account.usage(), [10_000, 1 << 20]);
    let large = large.map(|size| account.calloc(1, size).unwrap());
    // What the allocator itself has of the fallback is no block of the account.
    assert_eq!(before.bytes, account.pools().stats().bytes_in_use());
    assert_eq!(account.usage().bytes, before.bytes + 10_000 + (1 << 20));
    // SAFETY: 1: live; 2: not used any more.
    assert!(unsafe { account.realloc(Some(large[0]), 50_000) }.is_some());
    assert!(source.arenas.get() > 100 && fallback.counts().live_blocks > 2);
    account.pools().check_invariants();
    drop(account);
    assert_eq!((source.arenas.get(), fallback.counts().live_blocks, budget.held()), (0, 0, 0));
}

#[test]
fn an_account_without_memory_ends_too() {
    let budget = Budget::new(usize::MAX);
    for calls in 0..20 {
        let fallback = FailAfter::new(Counting::new(LibcMalloc), calls);
        let source = Counted::default();
        let account = LocalPymalloc::account(&fallback, &source, &budget);
        for size in [10, 0, 10_000, 100, 20_000] {
            if let Some(block) = account.malloc(size) {
                // SAFETY: 1: live; 2: not used any more where it moves.
                let _ = unsafe { account.realloc(Some(block), size + 30_000) };
            }
        }
        account.pools().check_invariants();
        drop(account);
        assert_eq!(source.arenas.get(), 0);
        assert_eq!(fallback.inner().counts().live_blocks, 0, "{calls} calls");
        assert_eq!(budget.held(), 0);
    }
}

#[test]
fn collections_of_both_versions_live_in_an_account() {
    let budget = Budget::new(1 << 20);
    let account = local_account(&budget);
    let handle = AllocatorAdapter::new(&account);
    let mut new = Vec04::new_in(handle);
    let mut old = Vec02::new_in(handle);
    new.extend(0..1000_u64);
    old.extend(0..1000_u64);
    let mut map = hashbrown::HashMap::new_in(handle);
    map.extend((0..1000_u64).map(|n| (n, n * n)));
    assert_eq!(new[999] + old[999] + map[&30], 2898);
    assert!(new.try_reserve(1 << 20).is_err(), "the limit is the collection's error");
    // What a collection leaks lives as long as the account.
    let leaked: &mut [u64] = new.leak();
    assert_eq!(leaked[5], 5);
    drop((old, map));
    assert_eq!(account.usage().blocks, 1);
}

/// An account may be owned by the collection that lives in it, and end with it.
#[test]
fn a_collection_may_own_its_account() {
    let budget = Arc::new(Budget::new(1 << 20));
    let mut owned = Vec04::new_in(AllocatorAdapter::new(local_account(Arc::clone(&budget))));
    owned.extend(0..1000_u64);
    let owned = thread::spawn(move || owned.iter().sum::<u64>() + owned.len() as u64);
    assert_eq!(owned.join().unwrap(), 500_500);
    assert_eq!(budget.held(), 0);
}

#[test]
fn a_forgotten_account_keeps_its_memory() {
    let budget = Arc::new(Budget::new(1 << 20));
    let account = local_account(Arc::clone(&budget));
    let block = account.malloc(100).unwrap();
    // SAFETY: a live block of 100 bytes.
    unsafe { block.write_bytes(7, 100) };
    std::mem::forget(account);
    assert_eq!(budget.held(), POOL_BYTES);
    // SAFETY: as above, and initialised.
    assert_eq!(unsafe { block.read() }, 7);
}

#[test]
fn a_locked_account_serves_all_threads() {
    let budget = Budget::new(usize::MAX);
    let account = locked_account(&budget);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let blocks = (0..10_000).map(|n| account.malloc(n % 600).unwrap());
                for block in blocks.collect::<Vec<_>>().into_iter().step_by(2) {
                    free(&account, block);
                }
            });
        }
    });
    assert_eq!(account.usage().blocks, 20_000);
    drop(account);
    assert_eq!(budget.held(), 0);
}

static RUNTIME: Scoped<LibcMalloc> = Scoped::new(LibcMalloc);

#[test]
fn a_scope_leads_calls_without_a_handle_to_an_account() {
    let budget = Budget::new(1 << 20);
    let [outer, inner] = [(); 2].map(|()| local_account(&budget));
    let work = || {
        let mut names = HashMap::new();
        names.insert("outer", outer.usage().blocks);
        let first = RUNTIME.malloc(100).unwrap();
        let nested = || {
            free(&RUNTIME, RUNTIME.malloc(100).unwrap());
            RUNTIME.malloc(100).unwrap();
            names.insert("inner", inner.usage().blocks);
            // Another thread has entered nothing.
            thread::spawn(|| free(&RUNTIME, RUNTIME.malloc(100).unwrap())).join().unwrap();
            panic!("out of the scope");
        };
        // SAFETY: 1, 2: what is freed in the scope was made there.
        let nested = std::panic::AssertUnwindSafe(|| unsafe { enter(&inner, nested) });
        assert!(std::panic::catch_unwind(nested).is_err());
        // SAFETY: 1: live, and of the outer account, which is entered again; 2: not used any more.
        let first = unsafe { RUNTIME.realloc(Some(first), 200) };
        assert!(outer.pools().owns(first.unwrap().as_ptr()));
        names
    };
    // SAFETY: 1: the block in the outer account is never freed; 2: those of `inner` are freed in its scope.
    let names = unsafe { enter(&outer, work) };
    assert_eq!((names["outer"], names["inner"]), (0, 1));
    assert_eq!((outer.usage().blocks, inner.usage().blocks), (1, 1));
    let outside = RUNTIME.malloc(100).unwrap();
    assert!(!outer.pools().owns(outside.as_ptr()));
    free(&RUNTIME, outside);
}

/// Pools without a limit are an account too, if the fallback can be counted.
#[test]
fn pools_of_any_source_make_an_account() {
    let budget = Budget::new(usize::MAX);
    let large = LargeBlocks::new(LibcMalloc, &budget);
    let account = Account::new(LocalPymalloc::with_source(large, MmapArenas::new()));
    assert!(account.malloc(100).is_some() && account.malloc(10_000).is_some());
    assert_eq!((account.usage().blocks, budget.held()), (2, 10_000 + HEADER_BYTES));
    let arenas = BudgetedArenas::new(MmapArenas::new(), &budget);
    assert!(arenas.span().is_some() && arenas.alloc(ARENA_BYTES).is_some());
    let _: &dyn Malloc = &account;
    let _ = account.pools().usage();
}
