//! Owns [`Account`]: an allocator whose blocks are counted and end together, and [`Pools`], what it asks of the allocator.
//! Leaves the limit to `budget.rs`.

use crate::{Forward, Malloc};

/// Live blocks and their bytes, as the allocator has rounded them up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Usage {
    /// Blocks.
    pub blocks: usize,
    /// Bytes that these can hold, at least what was asked for.
    pub bytes: usize,
}

/// An allocator that knows all of its blocks.
///
/// # Safety
///
/// An implementation promises that
///
/// 1. no other value serves the blocks: the type is not `Clone`, and no reference to it is one of its kind.
pub unsafe trait Pools: Malloc {
    /// The live blocks, counted exactly and without allocating.
    fn usage(&self) -> Usage;

    /// Frees every block at once.
    ///
    /// # Safety
    ///
    /// 1. No block is used afterwards.
    /// 2. The allocator is only dropped afterwards.
    unsafe fn tear_down(&mut self);
}

/// Memory for one request, tenant or module: it is counted, and it ends as a whole.
///
/// Dropping the account frees every block that is still live, at once and without a look at the blocks: what they hold is
/// not dropped. Collections borrow the account as `AllocatorAdapter::new(&account)`, so none outlives it, and what
/// they leak lives as long as the account. An account that is forgotten keeps its memory. A limit is a [`Budget`](crate::Budget), on
/// which the pools draw.
///
/// Two crates have pools for it: `pymalloc_core::local_account` and `mimalloc_heaps::heap_account`.
///
/// # Examples
///
/// A collection cannot outlive the account:
///
/// ```compile_fail,E0505
/// # use malloc_api::{Account, AllocatorAdapter, Pools};
/// # fn outlive<P: Pools>(account: Account<P>) {
/// let names = allocator_api2::vec::Vec::<u8, _>::new_in(AllocatorAdapter::new(&account));
/// drop(account);
/// drop(names);
/// # }
/// ```
#[derive(Debug)]
pub struct Account<P: Pools> {
    pools: P,
}

impl<P: Pools> Account<P> {
    /// An account on `pools`, with the blocks that these have.
    #[must_use]
    pub const fn new(pools: P) -> Self {
        Self { pools }
    }

    /// The live blocks, counted exactly: a walk over the pools, not over the blocks.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.pools.usage()
    }

    /// The allocator behind the account.
    #[must_use]
    pub const fn pools(&self) -> &P {
        &self.pools
    }
}

// SAFETY: 1, 2: the account owns its pools, and is not `Clone`; 3: a field.
unsafe impl<P: Pools> Forward for Account<P> {
    type Target = P;

    #[inline]
    fn target(&self) -> &P {
        &self.pools
    }
}

impl<P: Pools> Drop for Account<P> {
    fn drop(&mut self) {
        // SAFETY: 1: blocks are live until the allocator is dropped (`Malloc` 1), and nothing else serves them (`Pools` 1);
        // 2: the fields are dropped next.
        unsafe { self.pools.tear_down() };
    }
}
