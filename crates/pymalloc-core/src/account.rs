//! Owns the pools of an account: [`BudgetedArenas`], arenas whose pools draw on a budget, and the functions that make accounts.
//! Leaves what is above the pools to `large_blocks.rs`.

use core::ptr::NonNull;

#[cfg(feature = "std")]
use malloc_api::LibcMalloc;
use malloc_api::{Account, Malloc, ToBudget};

use crate::access::{LocalPymalloc, LockedPymalloc};
use crate::large_blocks::LargeBlocks;
use crate::source::{ArenaSource, Span, Supply, forward_source};
#[cfg(feature = "std")]
use crate::sources::region::MmapArenas;

/// The arenas of a source, whose open pools draw on a [`Budget`](malloc_api::Budget).
#[derive(Debug)]
pub struct BudgetedArenas<S, B> {
    source: S,
    budget: B,
}

impl<S, B> BudgetedArenas<S, B> {
    /// The arenas of `source`, on `budget`.
    #[must_use]
    pub const fn new(source: S, budget: B) -> Self {
        Self { source, budget }
    }
}

// SAFETY: each method forwards to the same method of `S`, which keeps promises 1-6; a budget neither unwinds nor allocates (`ToBudget` 2).
unsafe impl<S: ArenaSource, B: ToBudget> ArenaSource for BudgetedArenas<S, B> {
    forward_source!(self => self.source, S);

    fn open_pool(&self, bytes: usize) -> bool {
        self.budget.budget().take(bytes)
    }

    fn close_pools(&self, bytes: usize) {
        self.budget.budget().give(bytes);
    }
}

/// The pools of an account for one thread at a time.
pub type LocalPools<R, S, B> = LocalPymalloc<LargeBlocks<R, B>, BudgetedArenas<S, B>>;

/// The pools of an account for all threads, behind one lock.
pub type LockedPools<R, S, B> = LockedPymalloc<LargeBlocks<R, B>, BudgetedArenas<S, B>>;

/// Accounts on pools of their own, over any source.
macro_rules! account {
    ($pools:ident, $new:literal) => {
        impl<R: Malloc, S: ArenaSource, B: ToBudget>
            $pools<LargeBlocks<R, B>, BudgetedArenas<S, B>>
        {
            /// An account on pools of its own, with arenas from `source` and large blocks from `fallback`.
            ///
            #[doc = concat!("[`", $new, "`](crate::", $new, ") says what draws on the budget.")]
            #[must_use]
            pub fn account(fallback: R, source: S, budget: B) -> Account<Self> {
                let fallback = LargeBlocks::new(fallback, budget.clone());
                Account::new(Self::with_source(fallback, BudgetedArenas::new(source, budget)))
            }
        }
    };
}

account!(LocalPymalloc, "local_account");
account!(LockedPymalloc, "locked_account");

/// An account for one thread at a time, on pools of its own.
///
/// Of the budget's bytes it takes each open pool as a whole (16 or 32 KiB; one a class is kept when its last block is freed, until the
/// bytes are needed), and each block above [`POOLED_MAX`](crate::POOLED_MAX) or of no bytes with a header of 32. When no pool can be
/// opened any more, small requests are served as large ones, down to the last byte. The records of an arena, in the
/// first of its pools, count with it.
///
/// # Examples
///
/// ```
/// use allocator_api2::vec::Vec;
/// use malloc_api::{AllocatorAdapter, Budget, Malloc};
///
/// let budget = Budget::new(1 << 20);
/// let request = pymalloc_core::local_account(&budget);
/// let mut names = Vec::new_in(AllocatorAdapter::new(&request));
/// names.extend(["ham", "spam"]);
/// assert_eq!(request.usage().blocks, 1);
/// assert!(request.malloc(2 << 20).is_none(), "more than the budget has");
/// std::mem::forget(names);
/// drop(request);
/// assert_eq!(budget.held(), 0);
/// ```
#[cfg(feature = "std")]
#[must_use]
pub fn local_account<B: ToBudget>(budget: B) -> Account<LocalPools<LibcMalloc, MmapArenas, B>> {
    LocalPymalloc::account(LibcMalloc, MmapArenas::new(), budget)
}

/// An account for all threads, on pools of its own behind one lock; draws on the budget as [`local_account`] does.
#[cfg(feature = "std")]
#[must_use]
pub fn locked_account<B: ToBudget>(budget: B) -> Account<LockedPools<LibcMalloc, MmapArenas, B>> {
    LockedPymalloc::account(LibcMalloc, MmapArenas::new(), budget)
}
