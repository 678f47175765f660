//! Owns the live blocks of the conformance suite: every call of the allocator under test that must succeed, and the pattern
//! that each block must hold.

use core::mem::MaybeUninit;
use core::ptr::NonNull;

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

/// A live block whose first `size` bytes hold the pattern of `seed` once it is filled.
///
/// Invariant: a `Block` exists only while its `size` bytes are the suite's to read and write.
#[derive(Debug, Clone, Copy)]
pub(super) struct Block {
    pub(super) ptr: NonNull<u8>,
    size: usize,
    seed: u8,
}

impl Block {
    const fn new(ptr: NonNull<u8>, size: usize) -> Self {
        Self { ptr, size, seed: 0 }
    }

    /// The same pattern at another place, of which only the first `size` bytes count.
    const fn resized(self, ptr: NonNull<u8>, size: usize) -> Self {
        Self { ptr, size, seed: self.seed }
    }

    /// Whether the two share a byte; a zero-size block takes one, since its address must be its own.
    fn overlaps(&self, other: &Self) -> bool {
        let (start, other_start) = (self.ptr.addr().get(), other.ptr.addr().get());
        start < other_start + other.size.max(1) && other_start < start + self.size.max(1)
    }

    fn fill(&mut self, seed: u8) {
        self.seed = seed;
        let bytes = NonNull::slice_from_raw_parts(self.ptr.cast::<MaybeUninit<u8>>(), self.size);
        // SAFETY: the block's bytes are valid and nobody else's (the type's invariant), and may be uninitialised.
        let bytes = unsafe { &mut *bytes.as_ptr() };
        for (index, chunk) in bytes.chunks_mut(CHUNK_BYTES).enumerate() {
            let expected = pattern(seed, index, chunk.len());
            // SAFETY: both are `chunk.len()` bytes long, and the pattern is a constant.
            unsafe {
                chunk.as_mut_ptr().copy_from_nonoverlapping(expected.as_ptr().cast(), chunk.len())
            };
        }
    }

    /// The first offset that does not hold the pattern. Only for a filled block.
    pub(super) fn first_changed(&self) -> Option<usize> {
        self.first_unlike(|index, length| pattern(self.seed, index, length))
    }

    /// The first byte that is not zero. Only for a block from `calloc`.
    fn first_nonzero(&self) -> Option<(usize, u8)> {
        let offset = self.first_unlike(|_, length| &[0; CHUNK_BYTES][..length])?;
        Some((offset, self.bytes()[offset]))
    }

    /// Compares whole chunks, which is quick in debug builds too.
    fn first_unlike(&self, expected: impl Fn(usize, usize) -> &'static [u8]) -> Option<usize> {
        for (index, chunk) in self.bytes().chunks(CHUNK_BYTES).enumerate() {
            let expected = expected(index, chunk.len());
            if chunk != expected {
                let differing = chunk.iter().zip(expected).take_while(|(a, b)| a == b).count();
                return Some(index * CHUNK_BYTES + differing);
            }
        }
        None
    }

    fn bytes(&self) -> &[u8] {
        let bytes = NonNull::slice_from_raw_parts(self.ptr, self.size);
        // SAFETY: the bytes are valid (the type's invariant) and initialised: filled by us or zeroed by `calloc`.
        unsafe { bytes.as_ref() }
    }
}

/// What chunk `index` of a block with this seed holds; consecutive chunks differ, and so do consecutive seeds.
fn pattern(seed: u8, index: usize, length: usize) -> &'static [u8] {
    let start = usize::from(seed.wrapping_add((index as u8).wrapping_mul(29)));
    &TABLE[start..start + length]
}

const CHUNK_BYTES: usize = 4096;

/// Every pattern is a piece of it. Its period, 65,520 bytes, is longer than the table.
static TABLE: [u8; CHUNK_BYTES + 256] = {
    let mut table = [0; CHUNK_BYTES + 256];
    let mut state: u32 = 1;
    let mut i = 0;
    while i < table.len() {
        // Lehmer's generator modulo the prime 65,521, with the primitive root 17,364.
        state = state * 17_364 % 65_521;
        table[i] = (state >> 4) as u8;
        i += 1;
    }
    table
};
