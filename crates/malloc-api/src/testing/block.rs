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
        for (offset, byte) in bytes.iter_mut().enumerate() {
            byte.write(pattern(seed, offset));
        }
    }

    /// The first offset that does not hold the pattern. Only for a filled block.
    pub(super) fn first_changed(&self) -> Option<usize> {
        self.bytes()
            .iter()
            .enumerate()
            .position(|(offset, &byte)| byte != pattern(self.seed, offset))
    }

    /// The first byte that is not zero. Only for a block from `calloc`.
    pub(super) fn first_nonzero(&self) -> Option<(usize, u8)> {
        self.bytes().iter().copied().enumerate().find(|&(_, byte)| byte != 0)
    }

    fn bytes(&self) -> &[u8] {
        let bytes = NonNull::slice_from_raw_parts(self.ptr, self.size);
        // SAFETY: the bytes are valid (the type's invariant) and initialised: filled by us or zeroed by `calloc`.
        unsafe { bytes.as_ref() }
    }
}

const fn pattern(seed: u8, offset: usize) -> u8 {
    let mixed = offset ^ (offset >> 8) ^ (offset >> 16);
    seed ^ (mixed as u8).wrapping_mul(29)
}
