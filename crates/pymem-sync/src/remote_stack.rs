//! Owns [`RemoteStack`]: blocks that other threads free, on their way back to the heap's owner.

use core::fmt;
use core::marker::PhantomData;
use core::ptr::{self, NonNull};

use crossbeam_utils::CachePadded;

use crate::sync::{AtomicPtr, Ordering, Site, chosen, const_in_real, ordering};

/// Bit 0 of the head: nobody owns the stack. Blocks are word-aligned, so no address uses it.
const OWNERLESS: usize = 1;

/// A stack of blocks onto which any thread pushes and which its owner empties.
///
/// Intrusive: a waiting block's first word is the link, so a block must have at least one word and a word's alignment, and
/// nothing is ever allocated. A push is one compare-and-swap; a drain takes all blocks at once, so there is no ABA fault.
///
/// The stack is born owned. An owner that leaves calls [`abandon`](Self::abandon); from then on pushes still arrive, each
/// pusher learns that nobody will come for its block soon, and one caller of [`adopt`](Self::adopt) becomes the owner and
/// gets every block that waits. No interleaving of the three strands a block or makes two owners.
///
/// **Fork**: every push is one atomic step, so a child inherits a whole stack; blocks that a dead thread had not pushed
/// yet are lost with that thread.
///
/// # Examples
///
/// ```
/// use core::ptr::NonNull;
/// use pymem_sync::RemoteStack;
///
/// let stack = RemoteStack::new();
/// let mut words = [0_usize; 2];
/// for word in &mut words {
///     // SAFETY: (1) a word is a block of one word; (2) it is not used until it has been drained.
///     unsafe { stack.push(NonNull::from(word).cast()) };
/// }
/// assert_eq!(stack.drain().count(), 2);
/// ```
pub struct RemoteStack {
    /// The newest block, and [`OWNERLESS`].
    // Padded: every thread that frees writes here, while the owner reads its neighbours.
    head: CachePadded<AtomicPtr<u8>>,
}

/// What a push has met; see [`RemoteStack::push`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// The stack was empty: the first block since the last drain.
    pub was_empty: bool,
    /// The stack had no owner: the block waits until somebody [adopts](RemoteStack::adopt) the stack.
    pub ownerless: bool,
}

impl RemoteStack {
    const_in_real! {
        /// An empty stack, owned by its maker.
        #[must_use]
        pub const fn new() -> Self {
            Self { head: CachePadded::new(AtomicPtr::new(ptr::null_mut())) }
        }
    }

    /// Hands `block` to the owner, from any thread.
    ///
    /// # Safety
    ///
    /// 1. `block` is valid for reads and writes of one word and aligned to it, until it has come out of a [`Drain`].
    /// 2. Nobody else reads or writes the block, or pushes it again, until then.
    #[inline]
    pub unsafe fn push(&self, block: NonNull<u8>) -> Pushed {
        // SAFETY: (1), (2) a list of one block, its first and its last.
        unsafe { self.push_list(block, block) }
    }

    /// Hands a whole list to the owner in one step; `last`'s link is overwritten.
    ///
    /// # Safety
    ///
    /// 1. Every block from `first` to `last`, each linked to the next by its first word, is as [`push`](Self::push) asks.
    #[inline]
    unsafe fn push_list(&self, first: NonNull<u8>, last: NonNull<u8>) -> Pushed {
        // Release: pairs with the Acquire of `drain` and `adopt`, which thereby see the link and the contents; a push on top
        // of another continues its release sequence, so one Acquire sees all. See `loom_remote_stack`.
        let release = ordering(Site::StackPush, Ordering::Release);
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            let mark = head.addr() & OWNERLESS;
            let below = head.map_addr(|address| address & !OWNERLESS);
            // SAFETY: (1) the caller owns the block's first word until the exchange below succeeds.
            unsafe { last.cast::<*mut u8>().write(below) };
            // A push never changes who owns the stack: the mark stays as it was. See `loom_abandon_adopt`.
            let kept = chosen(Site::StackKeepMark, mark, 0);
            let new = first.as_ptr().map_addr(|address| address | kept);
            match self.head.compare_exchange_weak(head, new, release, Ordering::Relaxed) {
                Ok(_) => return Pushed { was_empty: below.is_null(), ownerless: mark != 0 },
                Err(now) => head = now,
            }
        }
    }

    /// Takes every waiting block, newest first; for the owner.
    ///
    /// One load when nothing waits. Empty on an ownerless stack: those blocks belong to its next owner. Two threads that
    /// drain at once get different blocks.
    #[inline]
    pub fn drain(&self) -> Drain<'_> {
        // Acquire: pairs with the Release of `push`; see `loom_remote_stack`.
        let acquire = ordering(Site::StackDrain, Ordering::Acquire);
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            if head.is_null() || head.addr() & OWNERLESS != 0 {
                return Drain::new(self, ptr::null_mut());
            }
            match self.head.compare_exchange_weak(head, ptr::null_mut(), acquire, Ordering::Relaxed)
            {
                Ok(_) => return Drain::new(self, head),
                Err(now) => head = now,
            }
        }
    }

    /// Leaves the stack without an owner, for the owner; true if blocks wait in it.
    ///
    /// Everything that the leaver wrote before is visible to the adopter. On an ownerless stack it changes nothing.
    pub fn abandon(&self) -> bool {
        // Release: pairs with the Acquire of `adopt`; later pushes continue the release sequence. See `loom_abandon_adopt`.
        let release = ordering(Site::StackAbandon, Ordering::Release);
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            let marked = head.map_addr(|address| address | OWNERLESS);
            match self.head.compare_exchange_weak(head, marked, release, Ordering::Relaxed) {
                Ok(_) => return head.addr() & !OWNERLESS != 0,
                Err(now) => head = now,
            }
        }
    }

    /// Becomes the owner and takes every waiting block; `None` if the stack has an owner.
    ///
    /// Of several threads that try, one succeeds.
    pub fn adopt(&self) -> Option<Drain<'_>> {
        // Acquire: pairs with the Release of `abandon` and of each `push`; see `loom_abandon_adopt`.
        let acquire = ordering(Site::StackAdopt, Ordering::Acquire);
        let mut head = self.head.load(Ordering::Relaxed);
        while head.addr() & OWNERLESS != 0 {
            match self.head.compare_exchange_weak(head, ptr::null_mut(), acquire, Ordering::Relaxed)
            {
                Ok(_) => {
                    return Some(Drain::new(self, head.map_addr(|address| address & !OWNERLESS)));
                }
                Err(now) => head = now,
            }
        }
        None
    }

    /// Whether no block waited a moment ago; one relaxed load.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.head.load(Ordering::Relaxed).addr() & !OWNERLESS == 0
    }

    /// Whether the stack had no owner a moment ago; one relaxed load.
    #[inline]
    #[must_use]
    pub fn is_ownerless(&self) -> bool {
        self.head.load(Ordering::Relaxed).addr() & OWNERLESS != 0
    }
}

impl Default for RemoteStack {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for RemoteStack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteStack")
            .field("is_empty", &self.is_empty())
            .field("is_ownerless", &self.is_ownerless())
            .finish()
    }
}

/// The blocks of one drain, newest first.
///
/// A block is the caller's once the iterator has returned it. Blocks that are left when it is dropped go back on the stack.
#[must_use = "dropping a drain puts its blocks back"]
pub struct Drain<'a> {
    stack: &'a RemoteStack,
    /// The rest: blocks that were pushed (1, 2 of `push`), taken off the stack by this drain alone.
    next: *mut u8,
    // Blocks belong to the thread that drains.
    _local: PhantomData<*mut u8>,
}

impl<'a> Drain<'a> {
    const fn new(stack: &'a RemoteStack, next: *mut u8) -> Self {
        Self { stack, next, _local: PhantomData }
    }
}

impl Iterator for Drain<'_> {
    type Item = NonNull<u8>;

    #[inline]
    fn next(&mut self) -> Option<NonNull<u8>> {
        let block = NonNull::new(self.next)?;
        // SAFETY: `self.next` was pushed, so its first word is readable (1 of `push`) and holds the link that the push wrote,
        // which the Acquire of the drain has made visible; only this drain has it (2 of `push`).
        self.next = unsafe { block.cast::<*mut u8>().read() };
        Some(block)
    }
}

impl Drop for Drain<'_> {
    fn drop(&mut self) {
        let Some(first) = NonNull::new(self.next) else { return };
        let last = self.by_ref().last().unwrap_or(first);
        // SAFETY: (1) the rest of the drain is a list of pushed blocks, linked by `push_list`, and nobody else has it.
        unsafe { self.stack.push_list(first, last) };
    }
}

impl fmt::Debug for Drain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Drain").field("is_empty", &self.next.is_null()).finish()
    }
}
