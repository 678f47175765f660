//! Owns [`AbandonedPool`]: things whose owners have left, for the next thread that needs one.

use core::cell::UnsafeCell;
use core::fmt;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::ptr::{self, NonNull};

use crossbeam_utils::CachePadded;

use crate::sync::{AtomicU64, Ordering, Site, chosen, const_in_real, ordering};

/// Low address bits that a [`Node`]'s alignment keeps zero.
const ALIGN_BITS: u32 = 7;
/// Address bits of user space that a [`Head`] can hold: 47 on x86-64, 48 on AArch64, 32 on 32-bit targets.
const ADDRESS_BITS: u32 = 48;
/// Bits of the version: the rest of the word.
const VERSION_SHIFT: u32 = ADDRESS_BITS - ALIGN_BITS;

const _: () =
    assert!(1 << ALIGN_BITS == align_of::<Node<u8>>(), "a node's alignment frees its low bits");

/// The pool's one word: the top node's address without its zero bits, and above it the version.
#[derive(Clone, Copy)]
struct Head(u64);

impl Head {
    const EMPTY: Self = Self(0);

    /// The address of the top node, 0 for none.
    const fn address(self) -> u64 {
        (self.0 & ((1 << VERSION_SHIFT) - 1)) << ALIGN_BITS
    }

    /// The same version with another top node.
    const fn with_address(self, address: u64) -> Self {
        Self((self.0 >> VERSION_SHIFT) << VERSION_SHIFT | address >> ALIGN_BITS)
    }

    /// The next version with another top node; wraps round.
    const fn next_version(self, address: u64, step: u64) -> Self {
        Self((self.0 >> VERSION_SHIFT).wrapping_add(step) << VERSION_SHIFT | address >> ALIGN_BITS)
    }
}

/// A thing and the room that it needs to wait in an [`AbandonedPool`]; aligned to 128 bytes.
#[repr(C, align(128))]
pub struct Node<T> {
    /// The address of the node below in the pool; 0 for none. Written by the owner, read by any taker.
    below: AtomicU64,
    /// Reached only by the node's owner.
    value: UnsafeCell<T>,
}

impl<T> Node<T> {
    const_in_real! {
        /// A node around `value`.
        #[must_use]
        pub const fn new(value: T) -> Self {
            Self { below: AtomicU64::new(0), value: UnsafeCell::new(value) }
        }
    }

    /// The value.
    #[must_use]
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }
}

impl<T> fmt::Debug for Node<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").finish_non_exhaustive()
    }
}

/// The only way to a [`Node`]'s value: whoever has the handle owns the thing.
///
/// One word. Dropping it neither drops the value nor gives it to a pool: the node stays as it is until the end of `'p`.
#[must_use = "a thing whose handle is dropped is out of reach until the end of its borrow"]
pub struct Owned<'p, T> {
    node: &'p Node<T>,
}

// SAFETY: the handle is the only way to the value, as a `&mut T` is.
unsafe impl<T: Send> Send for Owned<'_, T> {}
// SAFETY: a shared handle gives only `&T`.
unsafe impl<T: Sync> Sync for Owned<'_, T> {}

impl<'p, T> Owned<'p, T> {
    /// Owns the thing in `node`, which can now wait in pools for as long as it is borrowed.
    ///
    /// # Panics
    ///
    /// If the node lies above 2^48, where no operating system puts user memory unasked.
    pub fn new(node: &'p mut Node<T>) -> Self {
        let address = ptr::from_mut(node).expose_provenance();
        assert!(
            address as u64 >> ADDRESS_BITS == 0,
            "a node must lie below 2^{ADDRESS_BITS}, but this one is at {address:#x}; map its memory without a high address hint"
        );
        Self { node }
    }

    /// The node, for storage by address; [`from_raw`](Self::from_raw) brings the handle back.
    #[must_use]
    pub fn into_raw(self) -> NonNull<Node<T>> {
        NonNull::from(self.node)
    }

    /// The handle again.
    ///
    /// # Safety
    ///
    /// 1. `node` came out of [`into_raw`](Self::into_raw), and no other handle has been made from it since.
    /// 2. `'p` does not outlast the borrow of the handle that went in.
    pub const unsafe fn from_raw(node: NonNull<Node<T>>) -> Self {
        // SAFETY: (1) it was a shared reference with (2) at least this lifetime.
        Self { node: unsafe { node.as_ref() } }
    }
}

impl<T> Deref for Owned<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: this handle is the only way to the value, and `&self` rules out a `&mut`.
        unsafe { &*self.node.value.get() }
    }
}

impl<T> DerefMut for Owned<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: this handle is the only way to the value, and `&mut self` is its only borrow.
        unsafe { &mut *self.node.value.get() }
    }
}

impl<T: fmt::Debug> fmt::Debug for Owned<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Owned").field(&**self).finish()
    }
}

/// A lock-free pool of abandoned things; last in, first out.
///
/// Nothing is allocated: a thing waits in its own [`Node`], which must outlive the pool's last use (`'p`, mostly
/// `'static`: leak a box, or keep nodes in mapped memory). The last owner's writes are visible to the taker.
///
/// **ABA**: the head carries a version that each give counts up, so a taker that fell asleep between its look and its
/// exchange fails, unless exactly a multiple of 2^23 gives (2^39 on 32-bit targets) happened meanwhile *and* the
/// same node is on top again.
///
/// **Fork**: each operation takes effect in one atomic step, so a child inherits a whole pool.
///
/// This is Treiber's stack (*Systems Programming: Coping with Parallelism*, IBM RJ 5118, 1986) with a counted head.
///
/// # Examples
///
/// ```
/// use pymem_sync::{Node, Owned, AbandonedPool};
///
/// static POOL: AbandonedPool<'static, Vec<u8>> = AbandonedPool::new();
///
/// let mut mine = Owned::new(Box::leak(Box::new(Node::new(Vec::new()))));
/// mine.push(7);
/// POOL.give(mine);
/// assert_eq!(*POOL.take().unwrap(), [7]);
/// assert!(POOL.take().is_none());
/// ```
pub struct AbandonedPool<'p, T> {
    // Padded: every thread that comes or goes writes here.
    head: CachePadded<AtomicU64>,
    _nodes: PhantomData<*mut &'p Node<T>>,
}

// SAFETY: the pool moves owned things between threads and shares none.
unsafe impl<T: Send> Send for AbandonedPool<'_, T> {}
// SAFETY: as above; the only shared state is atomic.
unsafe impl<T: Send> Sync for AbandonedPool<'_, T> {}

impl<'p, T> AbandonedPool<'p, T> {
    const_in_real! {
        /// An empty pool.
        #[must_use]
        pub const fn new() -> Self {
            Self { head: CachePadded::new(AtomicU64::new(Head::EMPTY.0)), _nodes: PhantomData }
        }
    }

    /// Leaves `thing` to the next taker.
    pub fn give(&self, thing: Owned<'p, T>) {
        // `Owned::new` has checked that the address fits.
        let address = ptr::from_ref(thing.node).expose_provenance() as u64;
        // Release: pairs with the Acquire of `take`; see `loom_abandoned_pool`.
        let release = ordering(Site::PoolGive, Ordering::Release);
        // Counting gives alone is enough: for a node to be on top again, it must have been given again.
        let step = chosen(Site::PoolVersion, 1, 0);
        let mut head = Head(self.head.load(Ordering::Relaxed));
        loop {
            // Relaxed: the exchange below publishes it.
            thing.node.below.store(head.address(), Ordering::Relaxed);
            let new = head.next_version(address, step);
            match self.head.compare_exchange_weak(head.0, new.0, release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => head = Head(now),
            }
        }
    }

    /// Takes the thing that was given last; `None` if the pool is empty.
    #[must_use = "a thing whose handle is dropped is out of reach until the end of its borrow"]
    pub fn take(&self) -> Option<Owned<'p, T>> {
        // Acquire: pairs with the Release of `give`, for the node's link as well as for the value; a take on top of a give
        // continues its release sequence, so one Acquire sees every node below. See `loom_abandoned_pool`.
        let acquire = ordering(Site::PoolTake, Ordering::Acquire);
        let mut head = Head(self.head.load(acquire));
        loop {
            let node = ptr::with_exposed_provenance::<Node<T>>(head.address() as usize);
            if node.is_null() {
                return None;
            }
            // SAFETY: a non-zero address in the head is that of a node that was given, which is borrowed, hence alive and
            // shared only, for `'p`, whoever owns its value by now.
            let node: &'p Node<T> = unsafe { &*node };
            // Relaxed, and possibly stale: then the version differs and the exchange fails.
            let below = node.below.load(Ordering::Relaxed);
            let new = head.with_address(below);
            match self.head.compare_exchange_weak(head.0, new.0, acquire, acquire) {
                Ok(_) => return Some(Owned { node }),
                Err(now) => head = Head(now),
            }
        }
    }

    /// Whether nothing waited a moment ago; one relaxed load.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        Head(self.head.load(Ordering::Relaxed)).address() == 0
    }
}

impl<T> Default for AbandonedPool<'_, T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> fmt::Debug for AbandonedPool<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AbandonedPool").field("is_empty", &self.is_empty()).finish()
    }
}
