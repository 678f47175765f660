//! Owns the reads of a block's header and guard before it is known to be a block.

/// The two words at `address`.
#[inline]
pub(crate) fn header(address: *const u8) -> [u64; 2] {
    // SAFETY: a block's header, or what a broken caller passed.
    unsafe { address.cast::<[u64; 2]>().read_unaligned() }
}

/// The word at `address`.
#[inline]
pub(crate) fn word(address: *const u8) -> u64 {
    // SAFETY: a block's guard, or what a broken header leads to.
    unsafe { address.cast::<u64>().read_unaligned() }
}
