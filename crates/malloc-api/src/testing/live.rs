//! Owns the live blocks of the conformance suite: every call of the allocator under test that must succeed.

use core::ptr::NonNull;

use super::block::Block;
use super::nonconformance::Nonconformance;
use crate::{MIN_ALIGN, Malloc};

/// The most blocks that a check keeps live at one time.
const PLACES: usize = 66;

/// The live blocks of one check, each filled with a pattern of its own.
pub(super) struct Live<'a, A: ?Sized> {
    allocator: &'a A,
    pub(super) blocks: [Option<Block>; PLACES],
    filled: u8,
}

impl<'a, A: Malloc + ?Sized> Live<'a, A> {
    pub(super) fn new(allocator: &'a A) -> Self {
        Self { allocator, blocks: [None; PLACES], filled: 0 }
    }

    /// Checks a block just handed out, except its content.
    pub(super) fn inspect(
        &self,
        method: &'static str,
        answer: Option<NonNull<u8>>,
        size: usize,
    ) -> Result<Block, Nonconformance> {
        let ptr = answer.ok_or(Nonconformance::Refused { method, size })?;
        let address = ptr.addr().get();
        if address % MIN_ALIGN != 0 {
            return Err(Nonconformance::Misaligned { method, size, address });
        }
        let block = Block::new(ptr, size);
        if self.blocks.iter().flatten().any(|other| other.overlaps(&block)) {
            return Err(Nonconformance::Overlap { method, size, address });
        }
        Ok(block)
    }

    /// Keeps an inspected block live, filled, and returns its place.
    pub(super) fn keep(&mut self, mut block: Block) -> usize {
        self.filled = self.filled.wrapping_add(37);
        block.fill(self.filled);
        let place = self.blocks.iter().position(Option::is_none);
        let place = place.expect("the suite keeps at most two blocks of a size");
        self.blocks[place] = Some(block);
        place
    }

    pub(super) fn malloc(&mut self, size: usize) -> Result<usize, Nonconformance> {
        let block = self.inspect("malloc", self.allocator.malloc(size), size)?;
        Ok(self.keep(block))
    }

    pub(super) fn calloc(&mut self, nelem: usize, elsize: usize) -> Result<usize, Nonconformance> {
        let size = nelem * elsize;
        let block = self.inspect("calloc", self.allocator.calloc(nelem, elsize), size)?;
        if let Some((offset, found)) = block.first_nonzero() {
            return Err(Nonconformance::NotZeroed { size, offset, found });
        }
        Ok(self.keep(block))
    }

    /// Resizes the block at `place`, which must succeed, and checks what became of its content.
    pub(super) fn realloc(&mut self, place: usize, new_size: usize) -> Result<(), Nonconformance> {
        let mut old = self.take(place)?;
        let old_size = old.size;
        // SAFETY: (1) `old` is live; (2) only `resized` is used once the call succeeded.
        let answer = unsafe { self.allocator.realloc(Some(old.ptr), new_size) };
        let resized = self.inspect("realloc", answer, new_size)?;
        old = old.resized(resized.ptr, old_size.min(new_size));
        if let Some(offset) = old.first_changed() {
            return Err(Nonconformance::ContentLost { old_size, new_size, offset });
        }
        let mut resized = resized;
        resized.fill(old.seed);
        self.blocks[place] = Some(resized);
        Ok(())
    }

    /// Takes a block out of the live set after checking that nobody wrote to it.
    pub(super) fn take(&mut self, place: usize) -> Result<Block, Nonconformance> {
        let block = self.blocks[place].take().expect("the place holds a live block");
        match block.first_changed() {
            Some(offset) => Err(Nonconformance::Changed { size: block.size, offset }),
            None => Ok(block),
        }
    }

    pub(super) fn free(&mut self, place: usize) -> Result<(), Nonconformance> {
        let block = self.take(place)?;
        // SAFETY: (1) the block is live and (2) was taken out of the set of live ones.
        unsafe { self.allocator.free(Some(block.ptr)) };
        Ok(())
    }

    pub(super) fn unchanged(&self) -> Result<(), Nonconformance> {
        for block in self.blocks.iter().flatten() {
            if let Some(offset) = block.first_changed() {
                return Err(Nonconformance::Changed { size: block.size, offset });
            }
        }
        Ok(())
    }

    /// Frees every second block first, so that the others have freed neighbours.
    pub(super) fn free_all(mut self) -> Result<(), Nonconformance> {
        for parity in [1, 0] {
            for place in (parity..self.blocks.len()).step_by(2) {
                if self.blocks[place].is_some() {
                    self.free(place)?;
                }
            }
            self.unchanged()?;
        }
        Ok(())
    }
}
