//! Owns [`Budget`]: a limit in bytes and how much of it is taken, and [`ToBudget`], a way to it. Leaves whose bytes these are to those who take them.

#[cfg(feature = "std")]
extern crate std;

use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// A limit in bytes, for one [`Account`](crate::Account) or for several that share it.
///
/// An account takes bytes when it needs more memory and gives them back when it needs less, not at each block. Any thread may
/// take, give and look at any time.
///
/// # Examples
///
/// ```
/// use malloc_api::Budget;
///
/// let budget = Budget::new(1000);
/// assert!(budget.take(900));
/// assert!(!budget.take(200));
/// budget.give(900);
/// assert_eq!(budget.held(), 0);
/// ```
#[derive(Debug)]
pub struct Budget {
    limit: AtomicUsize,
    held: AtomicUsize,
}

impl Budget {
    /// A budget of `limit` bytes, of which nothing is taken; `usize::MAX` is no limit.
    #[must_use]
    pub const fn new(limit: usize) -> Self {
        Self { limit: AtomicUsize::new(limit), held: AtomicUsize::new(0) }
    }

    /// The limit in bytes.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit.load(Relaxed)
    }

    /// Changes the limit, from the next [`take`](Self::take) on. What is taken beyond a lower limit stays taken.
    pub fn set_limit(&self, bytes: usize) {
        self.limit.store(bytes, Relaxed);
    }

    /// Bytes that are taken.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.load(Relaxed)
    }

    /// Takes `bytes`, or nothing where the sum would be above the limit; `false` for nothing.
    #[must_use]
    pub fn take(&self, bytes: usize) -> bool {
        let within = |held: usize| held.checked_add(bytes).filter(|sum| *sum <= self.limit());
        self.held.fetch_update(Relaxed, Relaxed, within).is_ok()
    }

    /// Gives back `bytes` that were taken.
    pub fn give(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Relaxed);
    }
}

/// A way to a [`Budget`], by which an account keeps it: `&Budget`, or with feature `std` `Arc<Budget>`.
///
/// # Safety
///
/// An implementation promises that
///
/// 1. [`budget`](Self::budget) of a value and of its clones is always the same budget;
/// 2. `budget` neither unwinds nor uses an allocator.
pub unsafe trait ToBudget: Clone {
    /// The budget.
    fn budget(&self) -> &Budget;
}

// SAFETY: 1, 2: a reference and its copies refer to one budget.
unsafe impl ToBudget for &Budget {
    #[inline]
    fn budget(&self) -> &Budget {
        self
    }
}

// SAFETY: 1, 2: clones share one budget, which is found by a pointer.
#[cfg(feature = "std")]
unsafe impl ToBudget for std::sync::Arc<Budget> {
    #[inline]
    fn budget(&self) -> &Budget {
        self
    }
}
