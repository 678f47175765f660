//! Owns one live block of the shadow model: where it is, how long, and the pattern that it must still hold.

use std::mem::MaybeUninit;
use std::ptr::NonNull;

/// A live block. Word `i` of a filled block is `pattern(id) + i * STEP`, so that content which moved by a word is seen.
///
/// Invariant: a `Block` exists only while its `size` bytes are the model's to read and write, and `ptr` is aligned to
/// `MIN_ALIGN`, which is at least the alignment of a `u64`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Block {
    ptr: NonNull<u8>,
    size: usize,
    id: u64,
}

const WORD_BYTES: usize = size_of::<u64>();
/// 2^64 divided by the golden ratio: consecutive multiples differ in every byte.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

impl Block {
    pub(crate) const fn new(ptr: NonNull<u8>, size: usize) -> Self {
        Self { ptr, size, id: 0 }
    }

    pub(crate) const fn ptr(&self) -> NonNull<u8> {
        self.ptr
    }

    pub(crate) const fn size(&self) -> usize {
        self.size
    }

    pub(crate) const fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn fill(&mut self, id: u64) {
        self.id = id;
        let mut expected = pattern(id);
        let (words, tail) = self.parts::<MaybeUninit<u64>, MaybeUninit<u8>>();
        // SAFETY: the words are the block's (the type's invariant) and may be uninitialised.
        for word in unsafe { &mut *words.as_ptr() } {
            word.write(expected);
            expected = expected.wrapping_add(STEP);
        }
        // SAFETY: as above, for the bytes after the last whole word.
        let tail = unsafe { &mut *tail.as_ptr() };
        for (byte, expected) in tail.iter_mut().zip(expected.to_le_bytes()) {
            byte.write(expected);
        }
    }

    /// The first offset that does not hold the block's own pattern. Only for a filled block.
    pub(crate) fn first_changed(&self) -> Option<usize> {
        self.first_unlike(self, self.size)
    }

    /// The first offset below `size` without the pattern of `other`; `size` is at most the size of the block.
    pub(crate) fn first_unlike(&self, other: &Self, size: usize) -> Option<usize> {
        let mut expected = pattern(other.id);
        let (words, tail) = Self { size, ..*self }.parts::<u64, u8>();
        // SAFETY: the words are the block's (the type's invariant), and were filled, or kept by `realloc`, which an
        // allocator under test may get wrong: then they hold what the memory below the block held.
        let words = unsafe { words.as_ref() };
        for (i, &word) in words.iter().enumerate() {
            if word != expected {
                let differing = (word ^ expected).to_le().trailing_zeros() / u8::BITS;
                return Some(i * WORD_BYTES + differing as usize);
            }
            expected = expected.wrapping_add(STEP);
        }
        // SAFETY: as above, for the bytes after the last whole word.
        let tail = unsafe { tail.as_ref() };
        let differing = tail.iter().zip(expected.to_le_bytes()).position(|(&a, b)| a != b);
        differing.map(|at| words.len() * WORD_BYTES + at)
    }

    /// The first byte that is not zero. Only for a block from `calloc`.
    pub(crate) fn first_nonzero(&self) -> Option<(usize, u8)> {
        let bytes = NonNull::slice_from_raw_parts(self.ptr, self.size);
        // SAFETY: the bytes are the block's (the type's invariant) and `calloc` initialised them.
        let bytes = unsafe { bytes.as_ref() };
        let at = bytes.iter().position(|&byte| byte != 0)?;
        Some((at, bytes[at]))
    }

    /// The block's whole words, and its bytes after them.
    fn parts<Word, Byte>(&self) -> (NonNull<[Word]>, NonNull<[Byte]>) {
        let words = self.size / WORD_BYTES;
        // SAFETY: `words * WORD_BYTES <= size`, so the offset stays within the block or at its end.
        let tail = unsafe { self.ptr.add(words * WORD_BYTES) };
        let words = NonNull::slice_from_raw_parts(self.ptr.cast::<Word>(), words);
        (words, NonNull::slice_from_raw_parts(tail.cast::<Byte>(), self.size % WORD_BYTES))
    }
}

/// The first word of a block's pattern, little-endian in memory: never zero, and far from the word of the next id.
const fn pattern(id: u64) -> u64 {
    let mixed = (id ^ id >> 31).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (mixed ^ mixed >> 27) | 1
}
