//! Owns what is counted apart: a site, and the size classes by which sites differ.

use std::num::{NonZeroU16, NonZeroU64};
use std::ptr;

use pymem_sync::Entry;

use crate::counts::Counts;

/// What is counted apart: a stack, a profile, an origin and a size class.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SiteKey {
    /// The link of the stack's innermost node.
    pub(crate) stack: u32,
    /// The number of the profile among those that have these stacks.
    pub(crate) profile: NonZeroU16,
    /// The number of the origin.
    pub(crate) origin: u8,
    pub(crate) class: u8,
}

/// A key as one number, which is never 0, as no profile has that number.
pub(crate) type SiteWord = NonZeroU64;

/// The bits of a key's number below the class.
const CLASS_SHIFT: u32 = 56;

impl SiteKey {
    /// The key as one number.
    #[inline]
    pub(crate) const fn word(self) -> SiteWord {
        let Self { stack, profile, origin, class } = self;
        let above = (origin as u64) << 48 | (class as u64) << CLASS_SHIFT;
        let word = stack as u64 | (profile.get() as u64) << 32 | above;
        // As the profile's number is not 0.
        match NonZeroU64::new(word) {
            Some(word) => word,
            None => NonZeroU64::MAX,
        }
    }
}

/// The number of the key of a stack and a class, of which `keys` has the rest.
#[inline(always)]
pub(crate) fn key_with(keys: SiteWord, stack: u32, class: u8) -> SiteWord {
    keys | u64::from(stack) | u64::from(class) << CLASS_SHIFT
}

impl PartialEq for SiteKey {
    // One comparison, where one for each field makes four.
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        self.word() == other.word()
    }
}

impl Eq for SiteKey {}

/// A site with its counts; lives as long as the profile, which is for ever.
pub(crate) type SiteEntry = Entry<SiteKey, Counts>;

/// The largest size whose class is one of [`CLASS_BYTES`].
pub(crate) const NARROW_BYTES: usize = 512;
/// What the classes of small sizes are multiples of.
pub(crate) const CLASS_BYTES: usize = 16;

/// The size class of `size` bytes: one for each 16 bytes up to 512, as in CPython's pools, then four for each power of two.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "at most 31 + 4 * 55")]
pub(crate) const fn class_of(size: usize) -> u8 {
    let last = size.saturating_sub(1);
    if last < NARROW_BYTES {
        return (last / CLASS_BYTES) as u8;
    }
    let log = last.ilog2();
    (32 + 4 * (log - 9) + (last >> (log - 2)) as u32 % 4) as u8
}

/// The largest size of a class in bytes.
#[inline]
pub(crate) const fn class_bytes(class: u8) -> u64 {
    let Some(above) = class.checked_sub(32) else { return (class as u64 + 1) * 16 };
    let (log, quarter) = (above as u32 / 4 + 9, above as u64 % 4);
    (1_u64 << log).saturating_add((quarter + 1) << (log - 2))
}

/// As [`class_bytes`], of a class up to [`NARROW_BYTES`].
#[inline(always)]
pub(crate) const fn narrow_bytes(class: u8) -> u32 {
    (class as u32 + 1) * CLASS_BYTES as u32
}

/// The site at an address that a profiler kept.
///
/// # Safety
///
/// 1. `site` is null, or came from a reference to a site.
#[inline]
pub(crate) unsafe fn site_at(site: *const SiteEntry) -> Option<&'static SiteEntry> {
    // SAFETY: by 1; sites live as long as their profile, which is for ever.
    unsafe { site.as_ref() }
}

/// The address of a site; null for none.
#[inline]
pub(crate) fn address_of(site: Option<&'static SiteEntry>) -> *const SiteEntry {
    site.map_or(ptr::null(), ptr::from_ref)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_holds_the_sizes_up_to_its_largest() {
        for size in (0..10_000).chain([65_535, 65_536, 65_537, 1 << 40, isize::MAX as usize]) {
            let class = class_of(size);
            assert!(size as u64 <= class_bytes(class), "{size} is too large for class {class}");
            let smaller = class.checked_sub(1).map(class_bytes);
            assert!(smaller.is_none_or(|bytes| bytes < size as u64), "{size} is too small");
        }
        let sizes: Vec<u64> = (31..37).map(class_bytes).collect();
        assert_eq!(sizes, [512, 640, 768, 896, 1024, 1280]);
    }

    #[test]
    fn a_site_with_its_entry_is_small() {
        assert_eq!(size_of::<SiteEntry>(), 44);
    }
}
