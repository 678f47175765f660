//! Owns [`LargeRuns`]: large blocks from a span of memory beside the pools, for who gives the pools their fallback. Leaves the span to
//! `sources/run_memory.rs`.

use core::fmt;
use core::ptr::NonNull;

use malloc_api::Malloc;

use crate::checks::{annotate, hardened};
use crate::config::{POOLED_MAX, RUN_MAX};
use crate::sources::{purger, region, run_memory};
use crate::stats::LargeRunsStats;

/// Under a memory checker, and where misuse is to be found, blocks are those of the layer below, which knows about them.
const IS_ON: bool = !annotate::IS_ON && !hardened::IS_ON;

/// A fallback for pools: requests above [`POOLED_MAX`] and up to [`RUN_MAX`] bytes from a span of the process, beside the region of
/// the arenas, all others from `R`.
///
/// The span is one for all values, behind one lock. What is free there stays resident for some seconds, as free pools do. To free or
/// to resize what is no block of the span, but an address in it, ends the process with a line on stderr that names the misuse.
pub struct LargeRuns<R> {
    below: R,
    is_open: fn(&R) -> bool,
    freed: fn(&R, NonNull<u8>),
}

impl<R: Malloc> LargeRuns<R> {
    /// Large blocks over `below`.
    #[must_use]
    pub const fn new(below: R) -> Self {
        Self::while_open(below, |_| true, |_, _| {})
    }

    /// Large blocks over `below`, which serves them too where `is_open` says no; `freed` is called with each block of the span that ends.
    #[must_use]
    pub const fn while_open(below: R, is_open: fn(&R) -> bool, freed: fn(&R, NonNull<u8>)) -> Self {
        Self { below, is_open, freed }
    }

    /// A block of the span, and whether it reads as zero; see [`run_memory::take`].
    #[inline]
    fn take(&self, size: usize, grows: bool) -> Option<(NonNull<u8>, bool)> {
        if !IS_ON || size <= POOLED_MAX || size > RUN_MAX || !(self.is_open)(&self.below) {
            return None;
        }
        if !run_memory::has_begun() {
            run_memory::begin(region::begin()?);
        }
        run_memory::take(size, grows)
    }
}

/// Gives the block at `offset` of the span back; ends the process where there is none.
///
/// # Safety
///
/// 1. The block is not used afterwards.
unsafe fn give(offset: usize) {
    // SAFETY: 1: by 1.
    if let Some(spare) = unsafe { run_memory::give(offset, purger::is_late) } {
        purger::offer_runs(spare);
    }
}

/// Gives all free memory of the span back to the system; returns how many bytes.
pub fn release_large_runs() -> usize {
    run_memory::release()
}

/// Counts of the span; zeros before its first block. Takes time that grows with the number of blocks.
#[must_use]
pub fn large_runs_stats() -> LargeRunsStats {
    run_memory::stats()
}

/// Panics where the span's bookkeeping contradicts itself.
#[doc(hidden)]
pub fn check_large_runs() {
    run_memory::check();
}

impl<R: fmt::Debug> fmt::Debug for LargeRuns<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LargeRuns").field(&self.below).finish()
    }
}

// SAFETY: 1: a run belongs to one block until it is given back, and an address of the span is never one of `R`'s; 2: a run that is not
// fresh is cleared, and what moves is copied; 3: what is in use is given back after the copy alone; 4: a lock and system calls; 5: the
// span is the process's.
unsafe impl<R: Malloc> Malloc for LargeRuns<R> {
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        match self.take(size, false) {
            Some((block, _)) => Some(block),
            None => self.below.malloc(size),
        }
    }

    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        let size = nelem.saturating_mul(elsize);
        let Some((block, is_zero)) = self.take(size, false) else {
            return self.below.calloc(nelem, elsize);
        };
        if !is_zero {
            // SAFETY: so many bytes are the block's.
            unsafe { block.write_bytes(0, size) };
        }
        Some(block)
    }

    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        let Some(old) = ptr else {
            return self.malloc(new_size);
        };
        let Some(offset) = run_memory::offset_of(old) else {
            // SAFETY: 1, 2: the caller's, and the block is not of the span.
            return unsafe { self.below.realloc(ptr, new_size) };
        };
        // SAFETY: 1: the caller's.
        let Err(bytes) = (unsafe { run_memory::resize(offset, new_size) }) else {
            return ptr;
        };
        let new = match self.take(new_size, true) {
            Some((new, _)) => new,
            None => self.malloc(new_size)?,
        };
        // SAFETY: two live blocks of so many bytes at least.
        unsafe { new.copy_from_nonoverlapping(old, bytes.min(new_size)) };
        (self.freed)(&self.below, old);
        // SAFETY: 1: the caller's 1 and 2.
        unsafe { give(offset) };
        Some(new)
    }

    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        let run = ptr.and_then(|block| Some((block, run_memory::offset_of(block)?)));
        match run {
            Some((block, offset)) => {
                (self.freed)(&self.below, block);
                // SAFETY: 1: the caller's 1 and 2.
                unsafe { give(offset) }
            }
            // SAFETY: 1, 2: the caller's, and the block is not of the span.
            None => unsafe { self.below.free(ptr) },
        }
    }
}
