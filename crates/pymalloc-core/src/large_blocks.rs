//! Owns [`LargeBlocks`]: the blocks of a fallback as a list, so that they can be counted, limited and freed as a whole.

use core::cell::Cell;
use core::ptr::NonNull;
use core::{fmt, iter};

use malloc_api::{MIN_ALIGN, Malloc, Pools, ToBudget, Usage};

/// A fallback whose blocks draw on a [`Budget`](malloc_api::Budget) and stand in a list: each has 32 bytes more below it.
///
/// `LocalPymalloc` and `LockedPymalloc` on it are [`Pools`] of an account. `B` leads to the budget.
pub struct LargeBlocks<R, B> {
    fallback: R,
    budget: B,
    /// Invariant 1: every live block's header, linked both ways.
    first: Cell<Option<NonNull<Header>>>,
    usage: Cell<Usage>,
}

/// Stands below each block.
#[repr(C)]
struct Header {
    previous: Option<NonNull<Header>>,
    next: Option<NonNull<Header>>,
    /// Bytes that were asked for.
    size: usize,
}

const HEADER_BYTES: usize = size_of::<Header>().next_multiple_of(MIN_ALIGN);

// SAFETY: the list leads to blocks that belong to this value alone.
unsafe impl<R: Send, B: Send> Send for LargeBlocks<R, B> {}

impl<R, B> LargeBlocks<R, B> {
    /// The blocks of `fallback`, none as yet, on `budget`.
    #[must_use]
    pub const fn new(fallback: R, budget: B) -> Self {
        let usage = Usage { blocks: 0, bytes: 0 };
        Self { fallback, budget, first: Cell::new(None), usage: Cell::new(usage) }
    }

    fn headers(&self) -> impl Iterator<Item = NonNull<Header>> + use<R, B> {
        iter::successors(self.first.get(), |header| {
            // SAFETY: invariant 1; `successors` asks before it hands the header out.
            unsafe { header.as_ref() }.next
        })
    }

    /// Puts the block at `header` on the list; returns what the caller gets.
    ///
    /// # Safety
    ///
    /// 1. `header` begins a block of the fallback for `size` bytes and a header, which nobody else uses.
    unsafe fn link(&self, header: NonNull<Header>, size: usize) -> NonNull<u8> {
        let next = self.first.replace(Some(header));
        // SAFETY: 1.
        unsafe { header.write(Header { previous: None, next, size }) };
        if let Some(mut next) = next {
            // SAFETY: invariant 1.
            unsafe { next.as_mut() }.previous = Some(header);
        }
        let Usage { blocks, bytes } = self.usage.get();
        self.usage.set(Usage { blocks: blocks + 1, bytes: bytes + size });
        // SAFETY: 1: the block goes on.
        unsafe { header.cast::<u8>().add(HEADER_BYTES) }
    }

    /// Takes a block off the list; returns its header and the bytes that were asked for.
    ///
    /// # Safety
    ///
    /// 1. `block` is on the list.
    unsafe fn unlink(&self, block: NonNull<u8>) -> (NonNull<Header>, usize) {
        // SAFETY: 1: the header is below.
        let header = unsafe { block.sub(HEADER_BYTES) }.cast::<Header>();
        // SAFETY: invariant 1.
        let Header { previous, next, size } = unsafe { header.read() };
        match previous {
            // SAFETY: invariant 1.
            Some(mut previous) => unsafe { previous.as_mut() }.next = next,
            None => self.first.set(next),
        }
        if let Some(mut next) = next {
            // SAFETY: invariant 1.
            unsafe { next.as_mut() }.previous = previous;
        }
        let Usage { blocks, bytes } = self.usage.get();
        self.usage.set(Usage { blocks: blocks - 1, bytes: bytes - size });
        (header, size)
    }
}

impl<R: Malloc, B: ToBudget> LargeBlocks<R, B> {
    /// A block that `allocate` makes of so many bytes, header included, if the budget has as many.
    fn make(
        &self,
        size: usize,
        allocate: impl FnOnce(usize) -> Option<NonNull<u8>>,
    ) -> Option<NonNull<u8>> {
        let bytes = size.checked_add(HEADER_BYTES)?;
        if !self.budget.budget().take(bytes) {
            return None;
        }
        let Some(base) = allocate(bytes) else {
            self.budget.budget().give(bytes);
            return None;
        };
        // SAFETY: 1: fresh, of this size, and aligned to `MIN_ALIGN`.
        Some(unsafe { self.link(base.cast(), size) })
    }
}

// SAFETY: 1: the blocks are the fallback's, shifted by a header; 2: `calloc` and `realloc` are the fallback's, which keeps the
// header's bytes with the others; 3: the old block goes back on the list as it was; 4: no path
// unwinds, and neither the fallback nor `B` (`ToBudget` 2) calls back; 5: the blocks are elsewhere, and the type is not `Clone`.
unsafe impl<R: Malloc, B: ToBudget> Malloc for LargeBlocks<R, B> {
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        self.make(size, |bytes| self.fallback.malloc(bytes))
    }

    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        self.make(nelem.checked_mul(elsize)?, |bytes| self.fallback.calloc(1, bytes))
    }

    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        let Some(block) = ptr else { return self.malloc(new_size) };
        let bytes = new_size.checked_add(HEADER_BYTES)?;
        // SAFETY: 1: the caller's 1.
        let (header, size) = unsafe { self.unlink(block) };
        let more = new_size.saturating_sub(size);
        if self.budget.budget().take(more) {
            // SAFETY: 1: the block that `link` was given; 2: the header alone is used below.
            let moved = unsafe { self.fallback.realloc(Some(header.cast()), bytes) };
            if let Some(moved) = moved {
                self.budget.budget().give(size.saturating_sub(new_size));
                // SAFETY: 1: the block has this size now.
                return Some(unsafe { self.link(moved.cast(), new_size) });
            }
            self.budget.budget().give(more);
        }
        // SAFETY: 1: the block is as it was.
        unsafe { self.link(header, size) };
        None
    }

    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        let Some(block) = ptr else { return };
        // SAFETY: 1: the caller's 1.
        let (header, size) = unsafe { self.unlink(block) };
        // SAFETY: 1: the block that `link` was given; 2: the caller's 2.
        unsafe { self.fallback.free(Some(header.cast())) };
        self.budget.budget().give(size + HEADER_BYTES);
    }
}

// SAFETY: 1: the type is not `Clone`.
unsafe impl<R: Malloc, B: ToBudget> Pools for LargeBlocks<R, B> {
    fn usage(&self) -> Usage {
        self.usage.get()
    }

    unsafe fn tear_down(&mut self) {
        for header in self.headers() {
            // SAFETY: 1: invariant 1; 2: the caller's 1.
            unsafe { self.fallback.free(Some(header.cast())) };
        }
        self.first.set(None);
        let Usage { blocks, bytes } = self.usage.take();
        self.budget.budget().give(bytes + blocks * HEADER_BYTES);
    }
}

impl<R, B> fmt::Debug for LargeBlocks<R, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LargeBlocks").field("usage", &self.usage.get()).finish_non_exhaustive()
    }
}
