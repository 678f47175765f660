//! Owns the three fill bytes and how memory is filled with them and compared against them.
//! Leaves where each byte belongs to `block.rs`.

use core::ptr;

/// Handed out and not yet written.
pub const CLEANBYTE: u8 = 0xCD;
/// Freed.
pub const DEADBYTE: u8 = 0xDD;
/// Guard around a block.
pub const FORBIDDENBYTE: u8 = 0xFD;

/// `byte` in all eight bytes of a word.
#[inline]
pub(crate) const fn word(byte: u8) -> u64 {
    u64::from_ne_bytes([byte; 8])
}

/// Most bytes that stores written inline fill faster than the C library's `memset`; most of an interpreter's requests
/// are smaller.
pub(crate) const INLINE_FILL_BYTES: usize = 128;

/// Writes `byte` to the `len` bytes at `start`, and to the bytes up to eight where `len` is less.
///
/// # Safety
///
/// 1. The `max(len, 8)` bytes at `start` are valid for writes.
#[inline]
pub(crate) unsafe fn fill_at_least_8(start: *mut u8, byte: u8, len: usize) {
    if len <= INLINE_FILL_BYTES {
        // SAFETY: 1: duty 1; 2: tested.
        unsafe { fill_small(start, byte, len) };
    } else {
        // SAFETY: duty 1.
        unsafe { ptr::write_bytes(start, byte, len) };
    }
}

/// [`fill_at_least_8`] by a few overlapping stores, without a loop or a call.
///
/// # Safety
///
/// 1. The `max(len, 8)` bytes at `start` are valid for writes.
/// 2. `len` is at most [`INLINE_FILL_BYTES`].
#[inline]
pub(crate) unsafe fn fill_small(start: *mut u8, byte: u8, len: usize) {
    let half = word(byte);
    let full = [half; 2];
    if len <= 16 {
        // SAFETY: duty 1: 8 bytes at `start`.
        unsafe { start.cast::<u64>().write_unaligned(half) };
        let last = start.wrapping_add(len.saturating_sub(8));
        // SAFETY: duty 1: `last` is `start`, or 8 bytes before the end of `len` bytes.
        return unsafe { last.cast::<u64>().write_unaligned(half) };
    }
    let end = start.wrapping_add(len);
    let pair = |offset: usize| {
        // SAFETY: duty 1: each caller below has `offset + 16 <= len`.
        unsafe { start.wrapping_add(offset).cast::<[u64; 2]>().write_unaligned(full) };
        // SAFETY: as above, counted from the end.
        unsafe { end.wrapping_sub(offset + 16).cast::<[u64; 2]>().write_unaligned(full) };
    };
    pair(0);
    if len > 32 {
        pair(16);
        if len > 64 {
            pair(32);
            pair(48);
        }
    }
}

/// Offset of the first byte of `bytes` that is not `expected`.
#[cfg(feature = "std")]
pub(crate) fn first_other(bytes: &[u8], expected: u8) -> Option<usize> {
    // Whole lines first, without a branch inside: the compiler makes vectors of it.
    let differs = |line: &[u8]| line.iter().fold(0, |all, &b| all | (b ^ expected)) != 0;
    let lines = bytes.chunks_exact(LINE_BYTES);
    let rest = bytes.len() - lines.remainder().len();
    let start = lines.into_iter().position(differs).map_or(rest, |line| line * LINE_BYTES);
    bytes[start..].iter().position(|&b| b != expected).map(|at| start + at)
}

/// Bytes compared at a time.
#[cfg(feature = "std")]
const LINE_BYTES: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fill_touches_exactly_its_bytes() {
        for len in 0..600_usize {
            let mut bytes = [0_u8; 700];
            // SAFETY: 1: 600 bytes from offset 16 of 700.
            unsafe { fill_at_least_8(bytes[16..].as_mut_ptr(), DEADBYTE, len) };
            let filled = len.max(8);
            assert!(bytes[..16].iter().all(|&b| b == 0), "{len}");
            assert!(bytes[16..16 + filled].iter().all(|&b| b == DEADBYTE), "{len}");
            assert!(bytes[16 + filled..].iter().all(|&b| b == 0), "{len}");
        }
    }

    #[cfg(feature = "std")]
    #[test]
    fn first_other_names_the_first() {
        for len in 0..70 {
            let mut bytes = vec![DEADBYTE; len];
            assert_eq!(first_other(&bytes, DEADBYTE), None);
            for at in (0..len).rev() {
                bytes[at] = 1;
                assert_eq!(first_other(&bytes, DEADBYTE), Some(at));
            }
        }
    }
}
