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

/// Most bytes that are filled or copied by stores written inline, faster than by the C library's functions; most of an
/// interpreter's requests are smaller.
pub(crate) const INLINE_BYTES: usize = 128;

/// Writes `byte` to the `len` bytes at `start`, and to the bytes up to eight where `len` is less.
///
/// # Safety
///
/// 1. The `max(len, 8)` bytes at `start` are valid for writes.
#[inline]
pub(crate) unsafe fn fill_at_least_8(start: *mut u8, byte: u8, len: usize) {
    if len <= INLINE_BYTES {
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
/// 2. `len` is at most [`INLINE_BYTES`].
#[inline(always)]
pub(crate) unsafe fn fill_small(start: *mut u8, byte: u8, len: usize) {
    let half = |at: usize| {
        // SAFETY: duty 1: `half_parts`.
        unsafe { start.wrapping_add(at).cast::<u64>().write_unaligned(word(byte)) };
    };
    let full = |at: usize| {
        // SAFETY: duties 1 and 2: `parts` and `inner_parts`.
        unsafe { start.wrapping_add(at).cast::<[u64; 2]>().write_unaligned([word(byte); 2]) };
    };
    if len <= 16 {
        return half_parts(len).into_iter().for_each(half);
    }
    parts(len).into_iter().for_each(full);
    if len > 64 {
        inner_parts(len).into_iter().for_each(full);
    }
}

/// Copies the `len` bytes at `from` to `to`, and those up to eight where `len` is less, as [`fill_small`] fills.
///
/// # Safety
///
/// 1. The `max(len, 8)` bytes at `from` are valid for reads, those at `to` for writes, and the two do not overlap.
/// 2. `len` is at most [`INLINE_BYTES`].
#[inline(always)]
pub(crate) unsafe fn copy_small(from: *const u8, to: *mut u8, len: usize) {
    let half = |at: usize| {
        // SAFETY: duty 1: `half_parts`.
        unsafe { ptr::copy_nonoverlapping(from.wrapping_add(at), to.wrapping_add(at), 8) };
    };
    let full = |at: usize| {
        // SAFETY: duties 1 and 2: `parts` and `inner_parts`.
        unsafe { ptr::copy_nonoverlapping(from.wrapping_add(at), to.wrapping_add(at), 16) };
    };
    if len <= 16 {
        return half_parts(len).into_iter().for_each(half);
    }
    parts(len).into_iter().for_each(full);
    if len > 64 {
        inner_parts(len).into_iter().for_each(full);
    }
}

/// Offsets of parts of 8 bytes that cover `max(len, 8)` bytes and no more, for `len` up to 16.
#[inline(always)]
fn half_parts(len: usize) -> [usize; 2] {
    [0, len.saturating_sub(8)]
}

/// Offsets of parts of 16 bytes within `len` bytes, for `len` from 16: they cover up to 64 bytes, and the outer ones of more.
/// The same four stores for most sizes are cheaper than a branch that is guessed wrong.
#[inline(always)]
fn parts(len: usize) -> [usize; 4] {
    let last = len - 16;
    [0, last.min(16), last.min(32), last]
}

/// Offsets of the parts that are missing in [`parts`] for `len` from 65 to [`INLINE_BYTES`].
#[inline(always)]
fn inner_parts(len: usize) -> [usize; 4] {
    let last = len - 16;
    [48, last - 48, last - 32, last - 16]
}

/// Whether each of the `len` bytes at `start` is `byte`, by a few overlapping loads, as [`fill_small`] fills.
///
/// # Safety
///
/// 1. The `len` bytes at `start` are valid for reads.
/// 2. `len` is from 16 to [`INLINE_BYTES`].
#[cfg(feature = "std")]
#[inline(always)]
pub(crate) unsafe fn is_all(start: *const u8, byte: u8, len: usize) -> bool {
    let others = |at: usize| {
        // SAFETY: duties 1 and 2: `parts` and `inner_parts`.
        let [low, high] = unsafe { start.wrapping_add(at).cast::<[u64; 2]>().read_unaligned() };
        low ^ word(byte) | high ^ word(byte)
    };
    let outer = parts(len).into_iter().fold(0, |found, at| found | others(at));
    if len <= 64 {
        return outer == 0;
    }
    inner_parts(len).into_iter().fold(outer, |found, at| found | others(at)) == 0
}

/// Offset of the first byte of `bytes` that is not `expected`.
#[cfg(feature = "std")]
pub(crate) fn first_other(bytes: &[u8], expected: u8) -> Option<usize> {
    let (&first, others) = bytes.split_first()?;
    // Bytes that are all equal to the one before them: the C library compares faster than any loop here.
    if first == expected && others == &bytes[..others.len()] {
        return None;
    }
    bytes.iter().position(|&b| b != expected)
}

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

    #[test]
    fn copy_touches_exactly_its_bytes() {
        let from: Vec<u8> = (1..=INLINE_BYTES as u8).collect();
        for len in 0..=INLINE_BYTES {
            let mut bytes = [0_u8; INLINE_BYTES + 32];
            // SAFETY: 1: two arrays of 128 bytes and more; 2: the loop's bound.
            unsafe { copy_small(from.as_ptr(), bytes[16..].as_mut_ptr(), len) };
            let copied = len.max(8);
            assert!(bytes[..16].iter().all(|&b| b == 0), "{len}");
            assert_eq!(bytes[16..16 + copied], from[..copied]);
            assert!(bytes[16 + copied..].iter().all(|&b| b == 0), "{len}");
        }
    }

    #[cfg(feature = "std")]
    #[test]
    fn is_all_sees_each_byte() {
        for len in 16..=INLINE_BYTES {
            let mut bytes = [0_u8; INLINE_BYTES + 32];
            bytes[16..16 + len].fill(DEADBYTE);
            // SAFETY: 1: within the array; 2: the loop's bounds.
            assert!(unsafe { is_all(bytes[16..].as_ptr(), DEADBYTE, len) }, "{len}");
            for at in 16..16 + len {
                bytes[at] ^= 1;
                // SAFETY: as above.
                assert!(!unsafe { is_all(bytes[16..].as_ptr(), DEADBYTE, len) }, "{at}");
                bytes[at] ^= 1;
            }
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
