//! A small correct allocator that can be given exactly one bug.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ptr::NonNull;

use malloc_api::{LibcMalloc, MAX_REQUEST, MIN_ALIGN, Malloc};

/// One way to break one line of the trait's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bug {
    None,
    MallocMisaligns,
    MallocOfZeroRefused,
    MallocOfZeroShared,
    MallocTruncatesOversize,
    MallocOverlaps,
    CallocLeavesLastByteDirty,
    CallocMisaligns,
    CallocProductWraps,
    CallocServesOversize,
    CallocOfZeroRefused,
    ReallocOfNoneRefused,
    ReallocOfNoneServesOversize,
    ReallocToZeroFrees,
    ReallocToZeroFreesQuietly,
    ReallocLosesLastByte,
    ReallocLosesOnShrink,
    ReallocMisaligns,
    ReallocServesOversize,
    ReallocFailureFrees,
    ReallocFailureTouches,
    ReallocOverruns,
    FreeOfNoneFrees,
    FreeScribbles,
}

/// Carves 16-byte-aligned blocks off one region and reuses freed ones by their exact size, last in, first out.
///
/// Bugs corrupt only the region, so that a test program survives them.
pub(crate) struct Toy {
    bug: Bug,
    region: NonNull<u8>,
    next: Cell<usize>,
    sizes: RefCell<HashMap<usize, usize>>,
    free: RefCell<HashMap<usize, Vec<usize>>>,
    last: Cell<usize>,
}

const REGION_BYTES: usize = 512 << 20;

impl Toy {
    pub(crate) fn new(bug: Bug) -> Self {
        Self {
            bug,
            region: LibcMalloc.malloc(REGION_BYTES).expect("out of memory"),
            next: Cell::new(MIN_ALIGN),
            sizes: RefCell::default(),
            free: RefCell::default(),
            last: Cell::new(0),
        }
    }

    fn at(&self, offset: usize) -> NonNull<u8> {
        assert!(offset < REGION_BYTES);
        // SAFETY: the offset is within the region.
        unsafe { self.region.add(offset) }
    }

    fn poke(&self, offset: usize, byte: u8) {
        // SAFETY: the byte is within the region, which was allocated for this.
        unsafe { self.at(offset).write(byte) }
    }

    fn offset_of(&self, block: NonNull<u8>) -> usize {
        block.addr().get() - self.region.addr().get()
    }

    fn take(&self, size: usize) -> Option<NonNull<u8>> {
        if size > MAX_REQUEST {
            return None;
        }
        let reused = self.free.borrow_mut().get_mut(&size).and_then(Vec::pop);
        let offset = match reused {
            Some(offset) => offset,
            None => {
                let offset = self.next.get();
                // Two units more, for the bugs that step beside a block.
                let end = offset.checked_add(size)?.checked_add(3 * MIN_ALIGN)?;
                if end > REGION_BYTES {
                    return None;
                }
                self.next.set(end / MIN_ALIGN * MIN_ALIGN);
                // What a bug fails to write must be wrong, but not undefined: memcheck reports every decision on undefined bytes.
                // SAFETY: `offset..end` is within the region, and no block has been there yet.
                unsafe { self.at(offset).write_bytes(0xcd, end - offset) };
                offset
            }
        };
        self.sizes.borrow_mut().insert(offset, size);
        self.last.set(offset);
        Some(self.at(offset))
    }

    /// Takes a block and returns an address within it that is not aligned.
    fn take_misaligned(&self, size: usize) -> Option<NonNull<u8>> {
        let offset = self.offset_of(self.take(size)?);
        self.sizes.borrow_mut().insert(offset + MIN_ALIGN / 2, size);
        Some(self.at(offset + MIN_ALIGN / 2))
    }

    fn give(&self, offset: usize) {
        let size = self.sizes.borrow()[&offset];
        self.free.borrow_mut().entry(size).or_default().push(offset);
    }
}

impl Drop for Toy {
    fn drop(&mut self) {
        // SAFETY: (1) the region is live; (2) it goes with the allocator.
        unsafe { LibcMalloc.free(Some(self.region)) };
    }
}

// SAFETY: with `Bug::None` blocks are disjoint pieces of the region, zeroed and copied as promised. The bugs break the
// promises on purpose, but never touch memory outside the region.
unsafe impl Malloc for Toy {
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        match (self.bug, size) {
            (Bug::MallocMisaligns, 100) => self.take_misaligned(size),
            (Bug::MallocOfZeroRefused, 0) => None,
            (Bug::MallocOfZeroShared, 0) => {
                self.sizes.borrow_mut().insert(0, 0);
                Some(self.at(0))
            }
            (Bug::MallocTruncatesOversize, MAX_REQUEST..) => self.take(64),
            (Bug::MallocOverlaps, 512) => {
                let offset = self.last.get();
                self.sizes.borrow_mut().insert(offset, size);
                Some(self.at(offset))
            }
            _ => self.take(size),
        }
    }

    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        let size = match self.bug {
            Bug::CallocProductWraps => nelem.wrapping_mul(elsize),
            Bug::CallocServesOversize if nelem.checked_mul(elsize)? > MAX_REQUEST => 64,
            _ => nelem.checked_mul(elsize)?,
        };
        if size > MAX_REQUEST || (self.bug == Bug::CallocOfZeroRefused && size == 0) {
            return None;
        }
        let block = match self.bug {
            Bug::CallocMisaligns => self.take_misaligned(size),
            _ => self.take(size),
        }?;
        let zeroed = match self.bug {
            Bug::CallocLeavesLastByteDirty => size.saturating_sub(1),
            _ => size,
        };
        // SAFETY: the block is `size` bytes long.
        unsafe { block.write_bytes(0, zeroed) };
        Some(block)
    }

    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        let Some(old) = ptr else {
            return match (self.bug, new_size) {
                (Bug::ReallocOfNoneRefused, _) => None,
                (Bug::ReallocOfNoneServesOversize, MAX_REQUEST..) => self.take(64),
                _ => self.take(new_size),
            };
        };
        let offset = self.offset_of(old);
        let old_size = self.sizes.borrow()[&offset];
        match (self.bug, new_size) {
            (Bug::ReallocToZeroFrees, 0) => {
                self.give(offset);
                return None;
            }
            (Bug::ReallocToZeroFreesQuietly, 0) => {
                self.give(offset);
                return Some(old);
            }
            (Bug::ReallocServesOversize, MAX_REQUEST..) => return Some(old),
            (Bug::ReallocFailureFrees, MAX_REQUEST..) => {
                self.give(offset);
                return None;
            }
            (Bug::ReallocFailureTouches, MAX_REQUEST..) => {
                self.poke(offset, 0xee);
                return None;
            }
            _ => {}
        }
        let new = match self.bug {
            Bug::ReallocMisaligns => self.take_misaligned(new_size),
            _ => self.take(new_size),
        }?;
        let kept = match self.bug {
            Bug::ReallocLosesLastByte => old_size.min(new_size).saturating_sub(1),
            Bug::ReallocLosesOnShrink if new_size < old_size => new_size / 2,
            Bug::ReallocOverruns => old_size.max(new_size),
            _ => old_size.min(new_size),
        };
        let kept = kept.min(REGION_BYTES - self.offset_of(new)).min(REGION_BYTES - offset);
        // SAFETY: both ranges lie within the region.
        unsafe { old.copy_to(new, kept) };
        self.give(offset);
        Some(new)
    }

    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        match (self.bug, ptr) {
            (Bug::FreeOfNoneFrees, None) => self.give(self.last.get()),
            (Bug::FreeScribbles, Some(block)) => {
                let offset = self.offset_of(block);
                let neighbour = self.sizes.borrow().keys().copied().filter(|&o| o > offset).min();
                if let Some(neighbour) = neighbour {
                    self.poke(neighbour, 0xee);
                }
                self.give(offset);
            }
            (_, None) => {}
            (_, Some(block)) => self.give(self.offset_of(block)),
        }
    }
}
