//! Owns [`IdleUnits`] and its [`Keeper`]: memory that its owner does not need at the moment, and that another thread may
//! give back to the system once it has waited for long enough.
//!
//! ```text
//!  owner    offer ----> young ---- a period ----> old ---- a period ----> given back       keeper
//!             ^           |                        |
//!             +-- take_back: all that is in one of the two is as it was left
//! ```
//!
//! The owner needs no lock: what it takes back was in a word, and nobody else takes it out of a word but under the keeper's
//! lock. Where a unit is in neither word, the owner waits for that lock and finds the unit's memory gone.

use crate::lock::RawLock;
use crate::sync::{AtomicBool, AtomicU64, Ordering, Site, chosen, const_in_real, fence, ordering};

/// Up to 64 units of memory of one owner, and which of them wait to be given back.
#[derive(Debug)]
pub struct IdleUnits {
    /// Offered in this period.
    young: AtomicU64,
    /// Offered in the one before.
    old: AtomicU64,
}

/// Who gives idle memory back: one at a time, and none while nothing waits.
#[derive(Debug)]
pub struct Keeper {
    /// Held while units are taken from their words, and until their memory has gone.
    lock: RawLock,
    /// Written under the lock.
    is_awake: AtomicBool,
}

impl IdleUnits {
    const_in_real! {
        /// No unit waits.
        #[must_use]
        pub const fn new() -> Self {
            Self { young: AtomicU64::new(0), old: AtomicU64::new(0) }
        }
    }

    /// Lets `units`, a bit each, be given back; `false` if no keeper is awake, who would do that.
    ///
    /// The owner does not touch their memory until it has [taken](Self::take_back) them back.
    #[inline]
    pub fn offer(&self, units: u64, keeper: &Keeper) -> bool {
        // Release: pairs with the Acquire of `give_back`; see `loom_idle_pb3`.
        self.young.fetch_or(units, ordering(Site::IdleOffer, Ordering::Release));
        // Partner: the fence of `Keeper::rest`.
        fence(Site::IdleOfferFence);
        keeper.is_awake.load(Ordering::Relaxed)
    }

    /// Takes `units`, which were offered, back; returns those whose memory has not been given back.
    #[inline]
    pub fn take_back(&self, units: u64, keeper: &Keeper) -> u64 {
        let taken = self.take(units);
        if taken == units {
            return taken;
        }
        keeper.within(|| taken | self.take(units & !taken))
    }

    fn take(&self, units: u64) -> u64 {
        // Relaxed: what is in a word has been touched by nobody since it was offered.
        let young = self.young.fetch_and(!units, Ordering::Relaxed);
        (young | self.old.fetch_and(!units, Ordering::Relaxed)) & units
    }

    /// The units that wait. The memory of all others has gone when this returns.
    pub fn waiting(&self, keeper: &Keeper) -> u64 {
        keeper.within(|| self.now())
    }

    /// The units that waited a moment ago; the holder of the keeper's lock misses none that moves between the words.
    fn now(&self) -> u64 {
        self.young.load(Ordering::Relaxed) | self.old.load(Ordering::Relaxed)
    }

    /// Ends a period: calls `purge` with the units that have waited for a whole one, if there are any.
    ///
    /// `purge` gives their memory back before it returns, and uses none of these functions.
    pub fn give_back(&self, keeper: &Keeper, purge: impl FnOnce(u64)) {
        // Not worth the lock: what comes now is young.
        if self.now() == 0 {
            return;
        }
        keeper.within(|| {
            let due = self.old.swap(0, Ordering::Relaxed);
            // Acquire: pairs with the Release of `offer`; the next period's purge comes after the owner's last access.
            let young = self.young.swap(0, ordering(Site::IdleAge, Ordering::Acquire));
            self.old.fetch_or(young, Ordering::Relaxed);
            if due != 0 {
                purge(due);
            }
        });
    }
}

impl Default for IdleUnits {
    fn default() -> Self {
        Self::new()
    }
}

impl Keeper {
    const_in_real! {
        /// A keeper that sleeps.
        #[must_use]
        pub const fn new() -> Self {
            Self { lock: RawLock::new(), is_awake: AtomicBool::new(false) }
        }
    }

    fn within<T>(&self, work: impl FnOnce() -> T) -> T {
        self.lock.lock();
        let result = work();
        // SAFETY: (1) taken above.
        unsafe { self.lock.unlock() };
        result
    }

    /// Wakes the keeper; `false` if it is awake. Who gets `true` sees to it that somebody does the keeper's work.
    pub fn wake(&self) -> bool {
        self.within(|| !self.is_awake.load(Ordering::Relaxed) && self.set_awake(true))
    }

    fn set_awake(&self, is_awake: bool) -> bool {
        self.is_awake.store(is_awake, Ordering::Relaxed);
        true
    }

    /// Whether somebody does the keeper's work.
    #[must_use]
    pub fn is_awake(&self) -> bool {
        self.is_awake.load(Ordering::Relaxed)
    }

    /// Ends the keeper's work unless units of what `all` then gives wait; returns whether it has ended.
    ///
    /// A unit that is offered meanwhile is seen here, or its owner sees that nobody is awake. That holds for words that come into use
    /// meanwhile too, if `all` gives every word of which its owner said so before the offer.
    pub fn rest<'a, I>(&self, all: impl Fn() -> I) -> bool
    where
        I: IntoIterator<Item = &'a IdleUnits>,
    {
        self.within(|| {
            let early = chosen(Site::IdleRestOrder, false, true).then(&all);
            self.set_awake(false);
            // Partner: the fence of `IdleUnits::offer`. What is in use is looked up after it. See `loom_idle`.
            fence(Site::IdleRestFence);
            let is_over = early.unwrap_or_else(all).into_iter().all(|units| units.now() == 0);
            if !is_over {
                self.set_awake(true);
            }
            is_over
        })
    }

    /// Ends the keeper's work, whatever waits.
    pub fn stop(&self) {
        self.within(|| self.set_awake(false));
    }

    /// The lock that the keeper's work is done under, for the handlers of a fork.
    #[must_use]
    pub const fn lock(&self) -> &RawLock {
        &self.lock
    }
}

impl Default for Keeper {
    fn default() -> Self {
        Self::new()
    }
}
