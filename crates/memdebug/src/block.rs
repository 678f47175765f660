//! Owns the byte layout of a debug block, where size, API id, pads, data and serial number stand, and erasing a block that
//! moves.
//!
//! ```text
//!          p - 16          p - 8  p - 7         p               p + n           p + n + 8
//!            |               |      |           |                 |               |
//!   base --> | n, big-endian | id   | FD x 7    | n bytes of data | FD x 8        | serial, big-endian | site            |
//!            | 8             | 1    | 7         | CD, then live   | 8, unaligned  | 8, if asked for    | 8, if asked for |
//! ```
//!
//! `p` is what the caller gets. After a free every byte of it is `DD`. The layout is CPython's
//! (`Objects/obmalloc.c`), so that its tools and its tests read it.
//! A memory checker (features `asan`, `valgrind`) is told that header, guard and serial number are nobody's but the hooks',
//! and that fresh data is undefined although it is filled.
//! Leaves the checks and what follows from them to `calls.rs`.

use core::mem::MaybeUninit;
use core::ptr::{self, NonNull};

use malloc_api::{Domain, MAX_REQUEST, annotate};

use crate::pattern::{DEADBYTE, FORBIDDENBYTE, INLINE_BYTES, copy_small, fill_at_least_8, word};

/// Bytes before the data: size and API id with its pads.
pub const HEADER_BYTES: usize = 16;
/// Bytes of the guard after the data.
pub const TAIL_BYTES: usize = 8;
/// Bytes of the serial number after the guard, where serial numbers are on.
pub const SERIAL_BYTES: usize = 8;

// The header keeps the alignment of the block below it.
const _: () = assert!(HEADER_BYTES % malloc_api::MIN_ALIGN == 0);

/// Bytes of the site after that, where blocks have one.
pub(crate) const SITE_BYTES: usize = 8;

/// What a block has after its guard.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extra {
    pub(crate) serial: bool,
    pub(crate) site: bool,
}

impl Extra {
    /// Nothing.
    pub(crate) const NONE: Self = Self { serial: false, site: false };
}

/// Bytes that a block costs beyond the request.
#[inline]
pub(crate) const fn overhead(Extra { serial, site }: Extra) -> usize {
    let serial = if serial { SERIAL_BYTES } else { 0 };
    HEADER_BYTES + TAIL_BYTES + serial + if site { SITE_BYTES } else { 0 }
}

/// Largest request that still fits with its header and tail.
#[inline]
pub(crate) const fn max_request(extra: Extra) -> usize {
    MAX_REQUEST - overhead(extra)
}

/// The second header word of an intact block of `domain`: the letter and seven pads.
#[inline]
pub(crate) const fn id_word(domain: Domain) -> u64 {
    let f = FORBIDDENBYTE;
    u64::from_ne_bytes([domain.letter(), f, f, f, f, f, f, f])
}

/// The guard after the data of an intact block.
pub(crate) const TAIL_WORD: u64 = word(FORBIDDENBYTE);

/// Where the underlying block of the data at `p` starts. Wraps for a `p` that no block can have.
#[inline]
pub(crate) fn base_of(p: NonNull<u8>) -> *mut u8 {
    p.as_ptr().wrapping_sub(HEADER_BYTES)
}

/// The two header words for `size` bytes of the domain with this [`id_word`].
#[inline]
pub(crate) const fn header(size: usize, id: u64) -> [u64; 2] {
    [(size as u64).to_be(), id]
}

/// Writes the size, and `id` with its pads, at `base`.
///
/// # Safety
///
/// 1. The 16 bytes at `base` are valid for writes.
/// 2. `base` is 8-aligned.
#[inline]
pub(crate) unsafe fn write_header(base: *mut u8, size: usize, id: u64) {
    // SAFETY: duties 1 and 2.
    unsafe { base.cast::<[u64; 2]>().write(header(size, id)) };
}

/// Writes the guard after `size` bytes of data, and `serial` after it.
///
/// # Safety
///
/// 1. The 8 bytes (16 with a serial number) at `base + 16 + size` are valid for writes.
#[inline]
pub(crate) unsafe fn write_tail(base: *mut u8, size: usize, serial: Option<u64>) {
    let tail = base.wrapping_add(HEADER_BYTES + size);
    // SAFETY: duty 1.
    unsafe { tail.cast::<u64>().write_unaligned(TAIL_WORD) };
    if let Some(number) = serial {
        let place = tail.wrapping_add(TAIL_BYTES).cast::<u64>();
        // SAFETY: duty 1.
        unsafe { place.write_unaligned(number.to_be()) };
    }
}

/// Writes the site, as its bits, of the block at `base`, which has these words after its guard.
///
/// Whoever reads the site later may read bytes that were overwritten, so that half of the word depends on the other half and on
/// where the block is.
///
/// # Safety
///
/// 1. `base` is a live block of `size` bytes that has a site.
#[cfg(feature = "std")]
#[inline]
pub(crate) unsafe fn write_site(base: *mut u8, size: usize, extra: Extra, site: u32) {
    let word = site_word(base.wrapping_add(HEADER_BYTES).addr(), site);
    // SAFETY: duty 1.
    unsafe { site_place(base, size, extra).write_unaligned(word) };
}

/// Reads what [`write_site`] wrote; `None` where that was overwritten.
///
/// # Safety
///
/// 1. That of [`write_site`].
#[cfg(feature = "std")]
pub(crate) unsafe fn read_site(base: *mut u8, size: usize, extra: Extra) -> Option<u32> {
    // SAFETY: duty 1.
    let word = unsafe { site_place(base, size, extra).read_unaligned() };
    site_of(base.wrapping_add(HEADER_BYTES).addr(), word)
}

/// Where the site stands of the block of `size` bytes at `base`.
#[cfg(feature = "std")]
#[inline]
const fn site_place(base: *mut u8, size: usize, extra: Extra) -> *mut u64 {
    base.wrapping_add(size + overhead(Extra { site: false, ..extra })).cast()
}

/// What stands for a site, as its bits, in the block whose data are at `address`.
#[cfg(feature = "std")]
#[inline]
const fn site_word(address: usize, site: u32) -> u64 {
    let check = (address as u64 ^ site as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    check << 32 | site as u64
}

/// The bits of the site in a word that was read behind the data at `address`; `None` if it is none.
#[cfg(feature = "std")]
pub(crate) fn site_of(address: usize, word: u64) -> Option<u32> {
    let site = word as u32;
    (word == site_word(address, site)).then_some(site)
}

/// Reads the serial number of a block.
///
/// # Safety
///
/// 1. `base` is a live block of `size` bytes that was written with a serial number.
pub(crate) unsafe fn read_serial(base: *const u8, size: usize) -> u64 {
    let place = base.wrapping_add(HEADER_BYTES + size + TAIL_BYTES).cast::<u64>();
    // SAFETY: duty 1.
    u64::from_be(unsafe { place.read_unaligned() })
}

/// A part of the block at `base`, which is not null.
fn part(base: *mut u8, offset: usize) -> NonNull<u8> {
    NonNull::new(base.wrapping_add(offset)).unwrap_or(NonNull::dangling())
}

/// The block at `base` is about to be handed out: only its data may be touched.
#[inline(always)]
pub(crate) fn dressed(base: *mut u8, size: usize, extra: Extra) {
    if annotate::IS_ON {
        annotate::no_access(part(base, 0), HEADER_BYTES);
        annotate::no_access(part(base, HEADER_BYTES + size), overhead(extra) - HEADER_BYTES);
    }
}

/// The hooks are about to look at header and guard of an intact block, or to fill it.
#[inline(always)]
pub(crate) fn undressed(base: *mut u8, size: usize, extra: Extra) {
    if annotate::IS_ON {
        annotate::defined(part(base, 0), HEADER_BYTES);
        annotate::defined(part(base, HEADER_BYTES + size), overhead(extra) - HEADER_BYTES);
    }
}

/// The `size` bytes at `data` are filled, but hold nothing that a program may use.
#[inline(always)]
pub(crate) fn fresh(data: *mut u8, size: usize) {
    if annotate::IS_ON {
        annotate::undefined(part(data, 0), size);
    }
}

/// The freed block at `base` is held back: nobody may touch it.
#[cfg(feature = "std")]
pub(crate) fn held(base: *mut u8, size: usize, extra: Extra) {
    annotate::no_access(part(base, 0), size + overhead(extra));
}

/// A block that was held back is about to be verified, or given back.
#[cfg(feature = "std")]
pub(crate) fn unheld(base: *const u8, size: usize, extra: Extra) {
    annotate::defined(part(base.cast_mut(), 0), size + overhead(extra));
}

/// Bytes saved and erased at each end of a block's data.
const END_BYTES: usize = 64;

/// What `realloc` erases before a block moves, and puts back afterwards.
///
/// A stale pointer to a block that `realloc` moved shall meet dead bytes. What may still be needed is saved on the stack
/// first: the whole of a small block, 64 bytes at each end of a larger one, whose middle is left as it is (CPython's
/// rule; the option `full_erase` has none of these limits).
pub(crate) struct Erased {
    /// All data of a block up to 128 bytes, or the first 64 and the last 64. The rest is not used.
    saved: MaybeUninit<[u8; 2 * END_BYTES]>,
    old: usize,
}

const _: () = assert!(2 * END_BYTES == INLINE_BYTES);

impl Erased {
    /// Saves the data of the block at `base`, and fills header, the ends of the data and what follows them dead.
    ///
    /// # Safety
    ///
    /// 1. `base` is a live debug block of `old` bytes.
    #[inline]
    pub(crate) unsafe fn take(base: *mut u8, old: usize, extra: Extra) -> Self {
        let mut erased = Self { saved: MaybeUninit::uninit(), old };
        let to = erased.saved.as_mut_ptr().cast::<u8>();
        let data = base.wrapping_add(HEADER_BYTES);
        if old <= 2 * END_BYTES {
            // SAFETY: 1: the data, or its guard where that is shorter than 8 (duty 1); 2: tested.
            unsafe { copy_small(data, to, old) };
            // SAFETY: 1: the whole block (duty 1).
            unsafe { fill_at_least_8(base, DEADBYTE, old + overhead(extra)) };
        } else {
            let end = data.wrapping_add(old - END_BYTES);
            // SAFETY: duty 1: 64 of more than 128 bytes.
            unsafe { ptr::copy_nonoverlapping(data, to, END_BYTES) };
            // SAFETY: the last 64 of them.
            unsafe { ptr::copy_nonoverlapping(end, to.wrapping_add(END_BYTES), END_BYTES) };
            // SAFETY: 1: header and front.
            unsafe { fill_at_least_8(base, DEADBYTE, HEADER_BYTES + END_BYTES) };
            let after = overhead(extra) - HEADER_BYTES;
            // SAFETY: 1: the back with guard and serial number.
            unsafe { fill_at_least_8(end, DEADBYTE, END_BYTES + after) };
        }
        erased
    }

    /// Puts back the saved bytes that lie within `size` bytes. Bytes up to the eighth are written where `size` is less.
    ///
    /// # Safety
    ///
    /// 1. The `max(size, 8)` bytes at `data` are valid for writes.
    /// 2. They are the erased block's data, in its place or moved.
    #[inline]
    pub(crate) unsafe fn restore(&self, data: *mut u8, size: usize) {
        let from = self.saved.as_ptr().cast::<u8>();
        if self.old <= 2 * END_BYTES {
            // SAFETY: 1: duty 1, and no more than was saved; 2: tested.
            return unsafe { copy_small(from, data, self.old.min(size)) };
        }
        // SAFETY: duty 1, and no more than was saved.
        unsafe { ptr::copy_nonoverlapping(from, data, END_BYTES.min(size)) };
        let back = self.old - END_BYTES;
        if let Some(count) = size.checked_sub(back) {
            let to = data.wrapping_add(back);
            // SAFETY: duty 1: `back + count` is `size` at most.
            unsafe {
                ptr::copy_nonoverlapping(from.wrapping_add(END_BYTES), to, count.min(END_BYTES));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_bytes_of_mem() {
        let mut block = [0xCD_u64; 5];
        let base = block.as_mut_ptr().cast::<u8>();
        // SAFETY: 1 and 2: an array of words.
        unsafe { write_header(base, 5, id_word(Domain::Mem)) };
        // SAFETY: 1: 16 + 5 + 8 + 8 <= 40.
        unsafe { write_tail(base, 5, Some(0x0102)) };
        let bytes: Vec<u8> = block.iter().flat_map(|w| w.to_ne_bytes()).collect();
        assert_eq!(
            bytes[..16],
            [0, 0, 0, 0, 0, 0, 0, 5, 0x6d, 0xfd, 0xfd, 0xfd, 0xfd, 0xfd, 0xfd, 0xfd]
        );
        assert_eq!(bytes[21..29], [0xfd; 8]);
        assert_eq!(bytes[29..37], [0, 0, 0, 0, 0, 0, 1, 2]);
        // SAFETY: 1: just written.
        assert_eq!(unsafe { read_serial(base, 5) }, 0x0102);
    }
}
