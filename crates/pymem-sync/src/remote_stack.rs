//! Owns [`RemoteStack`]: blocks that other threads free, on their way back to the heap's owner.

use core::fmt;
use core::marker::PhantomData;
use core::ptr::{self, NonNull};

use crossbeam_utils::CachePadded;

use crate::sync::{AtomicPtr, Ordering, Site, const_in_real, ordering};

/// A stack of blocks onto which any thread pushes and which its owner empties.
///
/// Intrusive: a waiting block's first word is the link, so a block must have at least one word and a word's alignment, and
/// nothing is ever allocated. A push is one compare-and-swap; a drain takes all blocks at once, so there is no ABA fault.
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
    /// The newest block; null if none waits.
    // Padded: every thread that frees writes here, while the owner reads its neighbours.
    head: CachePadded<AtomicPtr<u8>>,
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
    pub unsafe fn push(&self, block: NonNull<u8>) {
        // SAFETY: (1) a list of one block, its first and its last.
        unsafe { self.push_list(block, block) }
    }

    /// Hands a whole list to the owner in one step; `last`'s link is overwritten.
    ///
    /// # Safety
    ///
    /// 1. Every block from `first` to `last`, each linked to the next by its first word, is as [`push`](Self::push) asks.
    #[inline]
    unsafe fn push_list(&self, first: NonNull<u8>, last: NonNull<u8>) {
        // Release: pairs with the Acquire of `drain`, which thereby sees the link and the contents; a push on top of another
        // continues its release sequence, so one Acquire sees all. See `loom_remote_stack`.
        let release = ordering(Site::StackPush, Ordering::Release);
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            // SAFETY: (1) the caller owns the block's first word until the exchange below succeeds.
            unsafe { last.cast::<*mut u8>().write(head) };
            match self.head.compare_exchange_weak(head, first.as_ptr(), release, Ordering::Relaxed)
            {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// Takes every waiting block, newest first; for the owner.
    ///
    /// One load when nothing waits. Two threads that drain at once get different blocks.
    #[inline]
    pub fn drain(&self) -> Drain<'_> {
        if self.is_empty() {
            return Drain::new(self, ptr::null_mut());
        }
        // Acquire: pairs with the Release of `push`; see `loom_remote_stack`.
        let acquire = ordering(Site::StackDrain, Ordering::Acquire);
        Drain::new(self, self.head.swap(ptr::null_mut(), acquire))
    }

    /// Whether no block waited a moment ago; one relaxed load.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.head.load(Ordering::Relaxed).is_null()
    }
}

impl Default for RemoteStack {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for RemoteStack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteStack").field("is_empty", &self.is_empty()).finish()
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
