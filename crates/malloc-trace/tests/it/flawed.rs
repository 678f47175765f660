//! A correct allocator that never reuses memory, and one bug of choice.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ptr::NonNull;

use malloc_api::{LibcMalloc, Malloc};

/// One class of error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bug {
    None,
    /// `malloc` answers an address that is not a multiple of `MIN_ALIGN`.
    Misaligns,
    /// `malloc` answers the last block again though it is live.
    Overlaps,
    /// `malloc` answers the end of the last block though it is live.
    OverlapsAtTheEnd,
    /// All zero-size blocks are one.
    SharesZeroSizes,
    /// `calloc` leaves the last byte dirty.
    LeavesDirt,
    /// `realloc` copies all but the last byte that it must keep.
    LosesLastByte,
    /// `realloc` copies from one word behind the start.
    CopiesFromTheWrongPlace,
    /// `realloc` copies the block that was allocated last, if that is long enough.
    CopiesAnotherBlock,
    /// `realloc` answers `None` and has overwritten the first byte of the block.
    TouchesOnFailure,
    /// `free` overwrites the first byte of the block that was allocated last.
    ScribblesOnFree,
    /// `malloc` overwrites the last byte of the block that was allocated last.
    ScribblesOnMalloc,
}

#[derive(Debug)]
pub(crate) struct Flawed {
    bug: Bug,
    /// The block that was allocated last and its size.
    last: Cell<Option<(NonNull<u8>, usize)>>,
    /// The zero-size block that was allocated first, for the bug that has only one.
    zero: Cell<Option<NonNull<u8>>>,
    sizes: RefCell<HashMap<NonNull<u8>, usize>>,
    /// What was taken from the C library, to give back at the end.
    taken: RefCell<Vec<NonNull<u8>>>,
}

/// Room beside every block for the bugs that step there.
const MARGIN_BYTES: usize = 64;

impl Flawed {
    pub(crate) fn new(bug: Bug) -> Self {
        Self {
            bug,
            last: Cell::new(None),
            zero: Cell::new(None),
            sizes: RefCell::default(),
            taken: RefCell::default(),
        }
    }

    fn is(&self, bug: Bug) -> bool {
        self.bug == bug
    }

    fn take(&self, size: usize) -> Option<NonNull<u8>> {
        let block = LibcMalloc.malloc(size + 2 * MARGIN_BYTES)?;
        // SAFETY: the block is longer than its margin.
        let inner = unsafe { block.add(MARGIN_BYTES) };
        // Fresh memory is dirty, so that nothing is zero by chance.
        // SAFETY: the block is this long.
        unsafe { block.write_bytes(0xa5, size + 2 * MARGIN_BYTES) };
        self.taken.borrow_mut().push(block);
        Some(self.hand_out(inner, size))
    }

    fn hand_out(&self, block: NonNull<u8>, size: usize) -> NonNull<u8> {
        self.last.set(Some((block, size)));
        self.sizes.borrow_mut().insert(block, size);
        block
    }
}

impl Drop for Flawed {
    fn drop(&mut self) {
        for block in self.taken.take() {
            // SAFETY: (1) the block is live; (2) it goes with the allocator.
            unsafe { LibcMalloc.free(Some(block)) };
        }
    }
}

fn poke(block: NonNull<u8>, offset: usize) {
    // SAFETY: callers stay within a block or its margin.
    let byte = unsafe { block.add(offset) };
    // SAFETY: as above.
    unsafe { byte.write(0x5a) };
}

// SAFETY: with `Bug::None` every block is memory of its own; the bugs break the promises on purpose but stay within
// memory of this allocator.
unsafe impl Malloc for Flawed {
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        match (self.bug, self.last.get()) {
            (Bug::Misaligns, _) => {
                let block = self.take(size)?;
                // SAFETY: the margin is longer.
                Some(self.hand_out(unsafe { block.add(8) }, size))
            }
            (Bug::Overlaps, Some((last, last_size))) if size <= last_size => {
                Some(self.hand_out(last, size))
            }
            (Bug::OverlapsAtTheEnd, Some((last, last_size @ 16..))) if size < MARGIN_BYTES => {
                // SAFETY: the offset is within the last block.
                let block = unsafe { last.add((last_size - 1) / 16 * 16) };
                self.hand_out(block, size);
                // The next overlap must not start at this block, whose end is in the margin.
                self.last.set(None);
                Some(block)
            }
            (Bug::SharesZeroSizes, _) if size == 0 => {
                let first = self.zero.get().or_else(|| self.take(0));
                self.zero.set(first);
                first
            }
            (Bug::ScribblesOnMalloc, Some((last, last_size))) if last_size > 0 => {
                poke(last, last_size - 1);
                self.take(size)
            }
            _ => self.take(size),
        }
    }

    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        let size = nelem.checked_mul(elsize)?;
        let block = self.take(size)?;
        let zeroed = if self.is(Bug::LeavesDirt) { size.saturating_sub(1) } else { size };
        // SAFETY: the block is `size` bytes long.
        unsafe { block.write_bytes(0, zeroed) };
        Some(block)
    }

    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        let Some(old) = ptr else { return self.take(new_size) };
        let old_size = self.sizes.borrow()[&old];
        if self.is(Bug::TouchesOnFailure) && old_size > 0 {
            poke(old, 0);
            return None;
        }
        let kept = old_size.min(new_size);
        let last =
            self.last.get().filter(|last| self.is(Bug::CopiesAnotherBlock) && last.1 >= kept);
        let source = last.map_or(old, |last| last.0);
        let new = self.take(new_size)?;
        let copied = if self.is(Bug::LosesLastByte) { kept.saturating_sub(1) } else { kept };
        let shift = if self.is(Bug::CopiesFromTheWrongPlace) { 8 } else { 0 };
        // SAFETY: the margin is longer than the shift.
        let from = unsafe { source.add(shift) };
        // SAFETY: both are at least this long, with the source's margin.
        unsafe { from.copy_to_nonoverlapping(new, copied) };
        Some(new)
    }

    unsafe fn free(&self, _: Option<NonNull<u8>>) {
        if let (true, Some((last, 1..))) = (self.is(Bug::ScribblesOnFree), self.last.get()) {
            poke(last, 0);
        }
    }
}
