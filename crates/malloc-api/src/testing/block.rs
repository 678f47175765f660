//! Owns one live block of the conformance suite: where it is, how long, and the pattern it must still hold.

use core::mem::MaybeUninit;
use core::ptr::NonNull;

/// A live block whose first `size` bytes hold the pattern of `seed` once it is filled.
///
/// Invariant: a `Block` exists only while its `size` bytes are the suite's to read and write.
#[derive(Debug, Clone, Copy)]
pub(super) struct Block {
    pub(super) ptr: NonNull<u8>,
    pub(super) size: usize,
    pub(super) seed: u8,
}

impl Block {
    pub(super) const fn new(ptr: NonNull<u8>, size: usize) -> Self {
        Self { ptr, size, seed: 0 }
    }

    /// The same pattern at another place, of which only the first `size` bytes count.
    pub(super) const fn resized(self, ptr: NonNull<u8>, size: usize) -> Self {
        Self { ptr, size, seed: self.seed }
    }

    /// Whether the two share a byte; a zero-size block takes one, since its address must be its own.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        let (start, other_start) = (self.ptr.addr().get(), other.ptr.addr().get());
        start < other_start + other.size.max(1) && other_start < start + self.size.max(1)
    }

    pub(super) fn fill(&mut self, seed: u8) {
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
    pub(super) fn first_nonzero(&self) -> Option<(usize, u8)> {
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
