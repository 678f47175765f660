//! Owns the system calls: map, populate, collapse, purge and unmap pages, and ask how many there were at most, and how long the process has
//! run. Advice that the kernel refuses is dropped.

use core::mem::MaybeUninit;
use core::ptr::NonNull;

use malloc_api::page_bytes;

use crate::config::HUGE_PAGE_BYTES;

/// Pieces of advice that not every system knows.
#[cfg(target_os = "linux")]
mod advice {
    /// Since Linux 5.14; older kernels answer EINVAL, and pages come one by one.
    pub(super) const POPULATE: Option<libc::c_int> = Some(23);
    pub(super) const HUGE_PAGE: Option<libc::c_int> = Some(libc::MADV_HUGEPAGE);
    pub(super) const NO_HUGE_PAGE: Option<libc::c_int> = Some(libc::MADV_NOHUGEPAGE);
    /// Since Linux 6.1.
    pub(super) const COLLAPSE: Option<libc::c_int> = Some(25);
    pub(super) const MAP_HUGE: Option<libc::c_int> =
        Some(libc::MAP_HUGETLB | (super::HUGE_PAGE_BYTES.trailing_zeros() as libc::c_int) << 26);
}

/// Only Linux knows them.
#[cfg(not(target_os = "linux"))]
mod advice {
    pub(super) const POPULATE: Option<libc::c_int> = None;
    pub(super) const HUGE_PAGE: Option<libc::c_int> = None;
    pub(super) const NO_HUGE_PAGE: Option<libc::c_int> = None;
    pub(super) const COLLAPSE: Option<libc::c_int> = None;
    pub(super) const MAP_HUGE: Option<libc::c_int> = None;
}

/// Bytes of a unit in which the system tells a process's peak.
#[cfg(target_vendor = "apple")]
const PEAK_UNIT: usize = 1;
#[cfg(not(target_vendor = "apple"))]
const PEAK_UNIT: usize = 1024;

const READ_WRITE: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;

/// Gives advice that keeps every byte; `false` if the system refuses, or does not know such advice.
///
/// # Safety
///
/// 1. The range is a mapping, or a part of one in whole pages.
unsafe fn advise(start: NonNull<u8>, bytes: usize, advice: Option<libc::c_int>) -> bool {
    // SAFETY: 1; the advice keeps every byte.
    advice.is_some_and(|advice| unsafe { libc::madvise(start.as_ptr().cast(), bytes, advice) } == 0)
}

/// `bytes` of zero pages, readable and writable; at `hint` if it is not 0 and the addresses are free, else anywhere.
fn map(hint: usize, bytes: usize, flags: libc::c_int) -> Option<NonNull<u8>> {
    let hint = core::ptr::without_provenance_mut(hint);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags;
    // SAFETY: an anonymous mapping where the kernel finds nothing else touches nothing that exists.
    let start = unsafe { libc::mmap(hint, bytes, READ_WRITE, flags, -1, 0) };
    if start == libc::MAP_FAILED { None } else { NonNull::new(start.cast()) }
}

/// `bytes` of zero pages for a sparse table; `None` if there is no address space.
pub(crate) fn map_sparse(bytes: usize) -> Option<NonNull<u8>> {
    map(0, bytes, libc::MAP_NORESERVE)
}

/// `bytes` of zero pages at `address`, without huge ones; `None` if there is no memory, or something is there already.
pub(crate) fn map_at(address: usize, bytes: usize) -> Option<NonNull<u8>> {
    let start = map(address, bytes, libc::MAP_NORESERVE)?;
    if start.addr().get() != address {
        // SAFETY: 1: mapped just now, and known to nobody.
        let _ = unsafe { unmap(start, bytes) };
        return None;
    }
    // SAFETY: 1: mapped just now.
    unsafe { forbid_huge_pages(start, bytes) };
    Some(start)
}

/// The most bytes that this process ever had resident, or the program from which it began; 0 if the system does not say.
pub(crate) fn peak_bytes() -> usize {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: a place for the answer.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) };
    // SAFETY: all zeros are a valid `rusage`: it has numbers only.
    let usage = unsafe { usage.assume_init() };
    usage.ru_maxrss as usize * PEAK_UNIT
}

/// Processor time of this process in nanoseconds; 0 if the system does not say.
pub(crate) fn cpu_nanos() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a place for the answer.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// A number that differs between processes if the system places stacks and libraries at random, and between copies of this library.
pub(crate) fn random() -> usize {
    static HERE: u8 = 0;
    let here = 0_u8;
    mix((&raw const here).addr() ^ (&raw const HERE).addr().rotate_left(20))
}

/// Lets each bit of `number` change a low bit of the result.
const fn mix(number: usize) -> usize {
    let product = number.wrapping_mul(0x9E37_79B9_7F4A_7C15_u64 as usize);
    let folded = product ^ product >> (usize::BITS / 2);
    folded ^ folded >> (usize::BITS / 4)
}

/// Returns a mapping; `false` if the addresses stay, and then the memory behind them goes if it can.
///
/// # Safety
///
/// 1. The range is a mapping of this module, or a part of one in whole pages, that nobody uses afterwards.
pub(crate) unsafe fn unmap(start: NonNull<u8>, bytes: usize) -> bool {
    let at = start.as_ptr().cast();
    // SAFETY: 1.
    if unsafe { libc::munmap(at, bytes) } == 0 {
        return true;
    }
    // SAFETY: 1.
    let _ = unsafe { libc::madvise(at, bytes, libc::MADV_DONTNEED) };
    false
}

/// `bytes` of zero pages at a multiple of `align`; `None` if there is no memory.
pub(crate) fn map_aligned(bytes: usize, align: usize) -> Option<NonNull<u8>> {
    let start = map(0, bytes, 0)?;
    if start.addr().get() % align == 0 {
        return Some(start);
    }
    // SAFETY: 1: mapped just now, and known to nobody.
    let _ = unsafe { unmap(start, bytes) };
    let start = map(0, bytes.checked_add(align)?, 0)?;
    let before = start.addr().get().wrapping_neg() % align;
    // SAFETY: `before` is less than `align`, by which the mapping is longer than `bytes`.
    let aligned = unsafe { start.add(before) };
    if before > 0 {
        // SAFETY: 1: the whole pages before the aligned start, known to nobody.
        let _ = unsafe { unmap(start, before) };
    }
    // SAFETY: in or at the end of the mapping, which ends at `bytes + align`.
    let end = unsafe { aligned.add(bytes) };
    // SAFETY: 1: the whole pages after the end, of which there is one at least as `before` is less than `align`.
    let _ = unsafe { unmap(end, align - before) };
    Some(aligned)
}

/// Brings the pages of the range in at one stroke, with their content.
///
/// # Safety
///
/// 1. The range is mapped, readable and writable.
pub(crate) unsafe fn populate(start: NonNull<u8>, bytes: usize) {
    // SAFETY: 1.
    let _ = unsafe { advise(start, bytes, advice::POPULATE) };
}

/// The whole pages of `page` bytes in the range: how far behind its start they begin, and their bytes; `None` if there are none.
///
/// The system rounds a length up: it would drop what follows in the last page.
fn whole_pages(start: usize, bytes: usize, page: usize) -> Option<(usize, usize)> {
    let skip = start.wrapping_neg() % page;
    let whole = bytes.checked_sub(skip)? & !(page - 1);
    (whole > 0).then_some((skip, whole))
}

/// Drops the memory behind the whole pages of the range; they read as zero next. Returns the bytes of those pages.
///
/// # Safety
///
/// 1. The range is part of a private anonymous mapping, and no byte of it is needed any more.
pub(crate) unsafe fn purge(start: NonNull<u8>, bytes: usize) -> usize {
    let Some((skip, bytes)) = whole_pages(start.addr().get(), bytes, page_bytes()) else {
        return 0;
    };
    // SAFETY: `skip + bytes` is at most the range's length.
    let start = unsafe { start.add(skip) };
    // SAFETY: 1.
    let done = unsafe { libc::madvise(start.as_ptr().cast(), bytes, libc::MADV_DONTNEED) };
    if done == 0 { bytes } else { 0 }
}

/// Puts new zero pages behind the range, without the kernel's tables of the old ones: where those remain, no huge page fits.
/// `false` if the system refused, and may have left nothing there.
///
/// # Safety
///
/// 1. The range is part of a mapping of this module, in whole pages, and no byte of it is needed any more.
pub(crate) unsafe fn renew(start: NonNull<u8>, bytes: usize) -> bool {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    let at = start.as_ptr().cast::<libc::c_void>();
    // SAFETY: 1.
    if unsafe { libc::mmap(at, bytes, READ_WRITE, flags, -1, 0) } != at {
        return false;
    }
    // SAFETY: mapped just now.
    unsafe { forbid_huge_pages(start, bytes) };
    true
}

/// Keeps the range out of transparent huge pages, whatever the system's default.
///
/// # Safety
///
/// 1. The range is a mapping, or a part of one in whole pages.
pub(crate) unsafe fn forbid_huge_pages(start: NonNull<u8>, bytes: usize) {
    // SAFETY: 1.
    let _ = unsafe { advise(start, bytes, advice::NO_HUGE_PAGE) };
}

/// Brings in one transparent huge page, all of the range at once; `false` if the system gave a single small page instead.
///
/// The advice is taken back at once: otherwise the kernel's scanner would later refill what was purged from the range.
///
/// # Safety
///
/// 1. The range is part of a private anonymous mapping, readable and writable, and nothing of it is in use.
pub(crate) unsafe fn fault_huge_page(start: NonNull<u8>) -> bool {
    // SAFETY: 1.
    if !unsafe { advise(start, HUGE_PAGE_BYTES, advice::HUGE_PAGE) } {
        return false;
    }
    // SAFETY: 1. Volatile, for it is the page fault that is wanted.
    unsafe { start.write_volatile(0) };
    // SAFETY: 1.
    unsafe { forbid_huge_pages(start, HUGE_PAGE_BYTES) };
    // SAFETY: below the range's length.
    let last = unsafe { start.add(HUGE_PAGE_BYTES - page_bytes()) };
    let mut is_resident = 0_u8;
    // SAFETY: 1; the page of one byte is one, also for an emulator whose own pages are smaller, and its answer one byte.
    let answer = unsafe { libc::mincore(last.as_ptr().cast(), 1, (&raw mut is_resident).cast()) };
    answer == 0 && is_resident & 1 == 1
}

/// Puts one transparent huge page behind the range, with what was there and zeros elsewhere; `false` if the system refused.
///
/// # Safety
///
/// 1. The range is part of a private anonymous mapping, at a multiple of its length.
pub(crate) unsafe fn collapse(start: NonNull<u8>) -> bool {
    // SAFETY: 1.
    if !unsafe { advise(start, HUGE_PAGE_BYTES, advice::HUGE_PAGE) } {
        return false;
    }
    // SAFETY: 1.
    let is_done = unsafe { advise(start, HUGE_PAGE_BYTES, advice::COLLAPSE) };
    // SAFETY: 1.
    unsafe { forbid_huge_pages(start, HUGE_PAGE_BYTES) };
    is_done
}

/// Puts a reserved huge page (`MAP_HUGETLB`) behind the range; `false`, and fresh small pages, if there is none. `None` if
/// there may be nothing behind the range.
///
/// # Safety
///
/// 1. The range is part of a mapping of this module at a multiple of its length, and nothing of it is in use.
pub(crate) unsafe fn map_reserved_huge_page(start: NonNull<u8>) -> Option<bool> {
    let Some(huge) = advice::MAP_HUGE else { return Some(false) };
    // Elsewhere first: a refusal at a fixed place can leave a hole there.
    let Some(trial) = map(0, HUGE_PAGE_BYTES, huge) else { return Some(false) };
    // SAFETY: 1: mapped just now, and known to nobody.
    let _ = unsafe { unmap(trial, HUGE_PAGE_BYTES) };
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | huge;
    let at = start.as_ptr().cast::<libc::c_void>();
    // SAFETY: 1.
    if unsafe { libc::mmap(at, HUGE_PAGE_BYTES, READ_WRITE, flags, -1, 0) } == at {
        return Some(true);
    }
    // SAFETY: 1.
    unsafe { renew(start, HUGE_PAGE_BYTES) }.then_some(false)
}

#[cfg(test)]
mod tests {
    use super::{map_aligned, mix, unmap, whole_pages};

    /// Copies of a library lie megabytes apart, and draw among four million places.
    #[test]
    fn neighbouring_numbers_draw_other_places() {
        const PLACES: usize = 1 << (usize::BITS / 3);
        let near = (0..usize::BITS).map(|bit| mix(1 << bit) % PLACES);
        let mut places: Vec<usize> = near.chain([mix(0) % PLACES]).collect();
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), usize::BITS as usize + 1);
    }

    /// Pages of 4, 16 and 64 KiB: what is dropped is whole pages, all of them, and nothing beyond the range.
    #[test]
    fn only_whole_pages_are_dropped() {
        const KIB: usize = 1 << 10;
        for page in [4 * KIB, 16 * KIB, 64 * KIB] {
            for start in (0..256 * KIB).step_by(2 * KIB) {
                for bytes in (0..256 * KIB).step_by(2 * KIB) {
                    let first = start.next_multiple_of(page);
                    let last = (start + bytes) / page * page;
                    let expected = (first < last).then(|| (first - start, last - first));
                    assert_eq!(
                        whole_pages(start, bytes, page),
                        expected,
                        "{page}: {start} {bytes}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_mapping_is_aligned_however_far_the_next_multiple_is() {
        const BYTES: usize = 64 << 10;
        for shift in [16, 24, 32] {
            let start = map_aligned(BYTES, 1 << shift).expect("memory");
            assert_eq!(start.addr().get() % (1 << shift), 0);
            // SAFETY: a mapping of so many bytes.
            unsafe { start.write_bytes(1, BYTES) };
            // SAFETY: 1: mapped above, and not used again.
            assert!(unsafe { unmap(start, BYTES) });
        }
    }
}
