//! Owns [`Delayed`]: one thread's queue of retired items, its limits, and what happens to it at thread exit.

use core::cell::{Cell, RefCell};
use core::mem::ManuallyDrop;
use core::{error, fmt};

use super::collector::Collector;
use super::domain::Domain;
use super::queue::{Pending, Queue, Reclaim};
use super::seq::Goal;
use super::slots::try_box;
use crate::sync::yield_now;

/// [`Delayed`] yields to other threads once this many times the limit in bytes waits.
const PRESSURE: usize = 8;
/// Yields for one batch.
const PRESSURE_YIELDS: usize = 4;

/// When a [`Delayed`] advances by itself.
///
/// The defaults are CPython's: 127 items, 1 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Items between two advances; one more advances. 0 advances for every item.
    pub items: usize,
    /// Bytes between two advances; one more advances, so a bigger item advances at once.
    pub bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { items: 127, bytes: 1024 * 1024 }
    }
}

/// There was no memory to queue an item; it comes back with the error.
pub struct OutOfMemory<T>(
    /// The item: still retired by no one. Stop the world and reclaim it, or keep it and try again.
    pub T,
);

impl<T> fmt::Debug for OutOfMemory<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutOfMemory").finish_non_exhaustive()
    }
}

impl<T> fmt::Display for OutOfMemory<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "no memory to queue an item of {} bytes for delayed free; stop the world and reclaim it, or try again",
            size_of::<T>()
        )
    }
}

impl<T> error::Error for OutOfMemory<T> {}

/// One thread's queue of retired items, reclaimed once no reader can see them.
///
/// Items queue up without a goal, and a batch of them gets one at a time: when the [`Limits`] are exceeded, by an advance;
/// in [`process`](Self::process), by a deferred goal, which somebody else's advance reaches. So an item costs no atomic
/// operation. Dropping the queue, at thread exit, leaves it to the [`Domain`] without a lock and without memory.
///
/// Memory in the queue is bounded by the limits as long as every attached participant reports quiescent states. While more
/// than 8 times the limit in bytes waits for a slow reader, each further batch first yields the time slice a few times.
///
/// # Examples
///
/// ```
/// use pymem_sync::qsbr::{Delayed, Domain, Limits, Reclaim};
///
/// struct Block(Box<[u8]>);
/// impl Reclaim for Block {
///     fn bytes(&self) -> usize {
///         self.0.len()
///     }
///     fn reclaim(self) {} // drops the box
/// }
///
/// let domain = Domain::new();
/// let delayed = Delayed::new(&domain, Limits::default()).expect("memory for a queue");
/// // SAFETY: (1) no reader knows of the block; (2), (3) there is none.
/// unsafe { delayed.retire(Block(Box::new([0; 100]))) }?;
/// assert_eq!(delayed.pending().bytes, 100);
/// delayed.flush();
/// assert_eq!(delayed.pending().items, 0);
/// # Ok::<(), pymem_sync::qsbr::OutOfMemory<Block>>(())
/// ```
pub struct Delayed<'d, T: Reclaim> {
    domain: &'d Domain<T>,
    limits: Cell<Limits>,
    /// Boxed from the start, so that handing it over needs no memory; taken out by `drop` alone. Never borrowed while
    /// foreign code runs, except for the global allocator in `push`.
    queue: RefCell<ManuallyDrop<Box<Queue<T>>>>,
    /// What the items in the queue amount to.
    bytes: Cell<usize>,
    /// What was retired since the last advance.
    since: Cell<Pending>,
    is_processing: Cell<bool>,
}

impl<'d, T: Reclaim> Delayed<'d, T> {
    /// An empty queue of the calling thread in `domain`; `None` if there is no memory.
    #[must_use]
    pub fn new(domain: &'d Domain<T>, limits: Limits) -> Option<Self> {
        Some(Self {
            domain,
            limits: Cell::new(limits),
            queue: RefCell::new(ManuallyDrop::new(try_box(Queue::new())?)),
            bytes: Cell::new(0),
            since: Cell::new(Pending::default()),
            is_processing: Cell::new(false),
        })
    }

    /// Queues `item` until no reader can see it.
    ///
    /// If that exceeds a limit, it advances and then [processes](Self::process) what is ready, the item itself excluded
    /// unless no participant is attached.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] with the item, if there is no memory for the queue even after [flushing](Self::flush) it. (Also if the global
    /// allocator itself calls `retire` on this queue while this queue grows.)
    ///
    /// # Safety
    ///
    /// 1. The item has been unlinked: nobody who attaches, or reports a quiescent state, after this call can reach it.
    /// 2. Readers that can reach it are attached participants of the same domain, and drop their references before they
    ///    report a quiescent state or detach.
    /// 3. When the [`Domain`] is dropped, no reader can reach it.
    #[inline]
    pub unsafe fn retire(&self, item: T) -> Result<(), OutOfMemory<T>> {
        let bytes = item.bytes();
        if let Err(item) = self.push(item) {
            self.retry(item)?;
        }
        self.bytes.set(self.bytes.get().saturating_add(bytes));
        let since = self.since.get();
        let since = Pending { items: since.items + 1, bytes: since.bytes.saturating_add(bytes) };
        self.since.set(since);
        let limits = self.limits.get();
        if since.items > limits.items || since.bytes > limits.bytes {
            self.limit_exceeded();
        }
        Ok(())
    }

    #[inline]
    fn push(&self, item: T) -> Result<(), T> {
        match self.queue.try_borrow_mut() {
            Ok(mut queue) => queue.push(item),
            Err(_) => Err(item),
        }
    }

    /// Out of memory: what is reclaimed makes room.
    #[cold]
    fn retry(&self, item: T) -> Result<(), OutOfMemory<T>> {
        self.flush();
        self.push(item).map_err(OutOfMemory)
    }

    #[cold]
    fn limit_exceeded(&self) {
        self.close(Collector::advance);
        self.since.set(Pending::default());
        self.process();
    }

    /// Gives the open items a goal.
    fn close(&self, goal: impl FnOnce(&Collector) -> Goal) {
        if let Ok(mut queue) = self.queue.try_borrow_mut() {
            if queue.is_open() {
                queue.close(goal(self.domain.collector()));
            }
        }
    }

    /// Reclaims the items whose goals are reached, this thread's and those of abandoned queues, and returns how many.
    ///
    /// Call it right after a quiescent state. Open items get a deferred goal. Called from an item's `reclaim`, it does
    /// nothing. Items that are retired meanwhile are left for the next call.
    pub fn process(&self) -> usize {
        self.close(Collector::next);
        let reclaimed = self.process_own();
        if !self.domain.has_abandoned() || self.is_processing.get() {
            return reclaimed;
        }
        let _flag = Flag::raise(&self.is_processing);
        reclaimed + self.domain.process()
    }

    /// Advances if any item waits for an advance, then processes.
    ///
    /// For a thread that will not retire for a while: before it detaches to block, and at its exit.
    pub fn flush(&self) -> usize {
        self.close(Collector::advance);
        let last = self.queue.try_borrow().ok().and_then(|queue| queue.last_goal());
        if last.is_some_and(|goal| !goal.is_reached_by(self.domain.collector().current())) {
            // A deferred goal, and nobody has advanced since.
            let _ = self.domain.collector().advance();
        }
        self.since.set(Pending::default());
        self.process()
    }

    fn process_own(&self) -> usize {
        if self.is_processing.get() {
            return 0;
        }
        // The queue is growing, and the global allocator has called.
        let Ok(at_start) = self.queue.try_borrow().map(|queue| queue.len()) else { return 0 };
        let _flag = Flag::raise(&self.is_processing);
        let mut left = at_start;
        while left > 0 {
            let Some(goal) = self.queue.borrow().first_goal() else { break };
            if !self.poll_patiently(goal) {
                break;
            }
            while left > 0 {
                let Some(item) = self.queue.borrow_mut().pop(goal) else { break };
                left -= 1;
                self.reclaim(item);
            }
        }
        if let Ok(mut queue) = self.queue.try_borrow_mut() {
            queue.shrink();
        }
        at_start - left
    }

    fn reclaim(&self, item: T) {
        self.bytes.set(self.bytes.get().saturating_sub(item.bytes()));
        item.reclaim();
    }

    /// Polls, and under pressure lets a reader that lost its time slice run to its next quiescent state.
    fn poll_patiently(&self, goal: Goal) -> bool {
        if self.domain.collector().poll(goal) {
            return true;
        }
        if self.bytes.get() / PRESSURE <= self.limits.get().bytes {
            return false;
        }
        (0..PRESSURE_YIELDS).any(|_| {
            yield_now();
            self.domain.collector().poll(goal)
        })
    }

    /// Reclaims every item whatever its goal, and returns how many; for a stopped world.
    ///
    /// Items that are retired meanwhile are left.
    ///
    /// # Safety
    ///
    /// 1. No reader holds a reference to a retired item: the world is stopped at quiescent states, or at its end.
    pub unsafe fn reclaim_all(&self) -> usize {
        if self.is_processing.get() {
            return 0;
        }
        // As in `process_own`.
        let Ok(at_start) = self.queue.try_borrow().map(|queue| queue.len()) else { return 0 };
        let _flag = Flag::raise(&self.is_processing);
        for _ in 0..at_start {
            let Some(item) = self.queue.borrow_mut().pop_any() else { break };
            self.reclaim(item);
        }
        at_start
    }

    /// Whether items wait that have a goal; a runtime then processes at its next quiescent state.
    #[must_use]
    pub fn should_process(&self) -> bool {
        self.queue.try_borrow().is_ok_and(|queue| queue.first_goal().is_some())
    }

    /// How much waits in this queue.
    #[must_use]
    pub fn pending(&self) -> Pending {
        let items = self.queue.try_borrow().map_or(0, |queue| queue.len());
        Pending { items, bytes: self.bytes.get() }
    }

    /// What was retired since this queue last advanced.
    #[must_use]
    pub fn since_advance(&self) -> Pending {
        self.since.get()
    }

    /// The limits.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits.get()
    }

    /// Changes the limits from the next item on.
    pub fn set_limits(&self, limits: Limits) {
        self.limits.set(limits);
    }
}

impl<T: Reclaim> Drop for Delayed<'_, T> {
    /// Leaves the items to the domain, with a goal of their own, and processes what is ready.
    fn drop(&mut self) {
        /// Also when an item unwinds.
        struct Abandon<'a, 'd, T: Reclaim>(&'a mut Delayed<'d, T>);
        impl<T: Reclaim> Drop for Abandon<'_, '_, T> {
            fn drop(&mut self) {
                // For items that were retired meanwhile.
                self.0.close(Collector::advance);
                // SAFETY: the queue is never used again: this is the drop.
                let queue = unsafe { ManuallyDrop::take(self.0.queue.get_mut()) };
                self.0.domain.abandon(queue);
            }
        }
        Abandon(self).0.flush();
    }
}

impl<T: Reclaim> fmt::Debug for Delayed<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delayed")
            .field("pending", &self.pending())
            .field("since_advance", &self.since_advance())
            .field("limits", &self.limits())
            .finish()
    }
}

/// A flag that is up while this lives.
struct Flag<'a>(&'a Cell<bool>);

impl<'a> Flag<'a> {
    fn raise(flag: &'a Cell<bool>) -> Self {
        flag.set(true);
        Self(flag)
    }
}

impl Drop for Flag<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}
