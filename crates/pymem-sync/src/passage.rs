//! Owns [`Passage`]: the way into data for callers that are one at a time anyway, until it is closed for good.

use crate::sync::{
    AtomicBool, Ordering, Site, chosen, const_in_real, far_fence, nap, near_fence, ordering,
    prepare_far_fence, spin_loop, yield_now,
};

/// How often the one who closes looks while it spins, and then while it yields, before it naps.
const SPINS: u32 = 64;
const YIELDED: u32 = SPINS + 64;

/// A way into data that needs no lock, for callers that are one at a time anyway; and that can be closed, for good, by a
/// thread that is none of them.
///
/// Who goes in marks that by one store, and the way out by another one; neither is a locked instruction or a fence. The cost
/// of that is the closing thread's: it has the system interrupt the processors on which the process runs (`membarrier`).
/// Where the system has no such call, or it is not known ([`prepare`](Self::prepare)), each way in has a fence of its own.
///
/// A caller that is inside when [`close`](Self::close) begins is waited for. From then on each finds the passage closed.
/// The hot path asks that by something that it reads anyway, a sign that says "closed" once [`close`](Self::close) has set
/// it: a limit that is 0, a key that fits nothing. It must read the sign, or [`is_open`](Self::is_open), after
/// [`enter`](Self::enter).
///
/// **Fork**: a child has lost the caller that was inside. One of its handlers calls [`leave`](Self::leave) then.
///
/// # Examples
///
/// ```
/// use pymem_sync::Passage;
///
/// static WAY: Passage = Passage::new();
///
/// assert!(Passage::prepare());
/// WAY.enter();
/// assert!(WAY.is_open(), "nobody is in the data but this thread");
/// WAY.leave();
/// WAY.close(|| {});
/// WAY.enter();
/// assert!(!WAY.is_open(), "whoever comes from now on takes a lock");
/// WAY.leave();
/// ```
#[derive(Debug)]
pub struct Passage {
    /// Whether somebody has marked that it goes in.
    is_inside: AtomicBool,
    is_closing: AtomicBool,
    is_closed: AtomicBool,
}

impl Passage {
    const_in_real! {
        /// An open passage.
        #[must_use]
        pub const fn new() -> Self {
            Self {
                is_inside: AtomicBool::new(false),
                is_closing: AtomicBool::new(false),
                is_closed: AtomicBool::new(false),
            }
        }
    }

    /// Tells the system that passages will be closed; `false` if it cannot do what that needs, and no passage may be used.
    #[must_use]
    pub fn prepare() -> bool {
        prepare_far_fence()
    }

    /// Marks that the calling thread goes in, if the passage turns out to be open.
    #[inline(always)]
    pub fn enter(&self) {
        self.is_inside.store(true, Ordering::Relaxed);
        // Pairs with the far fence of `close`: the mark is seen there, or the sign here; see `loom_passage_pb3`.
        near_fence(Site::PassageEnter);
    }

    /// Marks that the calling thread, which has [entered](Self::enter), is out again.
    #[inline(always)]
    pub fn leave(&self) {
        // Release: pairs with the Acquire of `wait`; see `loom_passage_pb3`. A plain store on x86.
        self.is_inside.store(false, ordering(Site::PassageLeave, Ordering::Release));
    }

    /// Whether nobody has begun to close the passage.
    #[inline]
    #[must_use]
    pub fn is_open(&self) -> bool {
        // Relaxed: a caller that finds it closed takes a lock. It comes after the callers before it in any case.
        !self.is_closing.load(Ordering::Relaxed)
    }

    /// Whether [`close`](Self::close) has come to its end, in whatever thread.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        // Acquire: pairs with the Release of `close`; who sees this may do what follows a close. See `loom_passage_pb3`.
        self.is_closed.load(ordering(Site::PassageSeen, Ordering::Acquire))
    }

    /// Closes the passage for good, unless it is closed. Nobody is inside any more then, and what was done inside has happened
    /// before.
    ///
    /// `sign` sets what the hot path asks, and may be called several times. Until this function returns, callers are still one at a
    /// time: those that go in, and those that find the passage closed and take a lock. The calling thread is not inside; it may
    /// be one of the callers or not.
    pub fn close(&self, sign: impl Fn()) {
        if self.is_closed() {
            return;
        }
        // Whoever sets the sign to "open" has seen that the passage is: first nobody must be left who might.
        self.is_closing.store(true, Ordering::Relaxed);
        self.wait(Site::PassageClose);
        sign();
        self.wait(Site::PassageSign);
        // Release: pairs with the Acquire of `is_closed`.
        self.is_closed.store(true, ordering(Site::PassageClosed, Ordering::Release));
    }

    /// Waits until each thread sees what this one has written when it next enters, and nobody is inside that has not.
    fn wait(&self, fence: Site) {
        far_fence(fence);
        let mut round = 0_u32;
        // Acquire: pairs with the Release of `leave`.
        while chosen(Site::PassageWait, true, false)
            && self.is_inside.load(ordering(Site::PassageWaited, Ordering::Acquire))
        {
            match round {
                0..SPINS => spin_loop(),
                SPINS..YIELDED => yield_now(),
                _ => nap(),
            }
            round = round.saturating_add(1);
        }
    }
}

impl Default for Passage {
    fn default() -> Self {
        Self::new()
    }
}
