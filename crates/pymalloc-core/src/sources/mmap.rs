//! Owns the system calls: reserve, commit, populate and purge pages. Advice that the kernel refuses is dropped.

use core::ptr::NonNull;

use crate::config::{ARENA_BYTES, HUGE_PAGE_BYTES, PAGE_BYTES};

/// Pieces of advice that not every system knows.
#[cfg(target_os = "linux")]
mod advice {
    /// Since Linux 5.14; older kernels answer EINVAL, and pages come one by one.
    pub(super) const POPULATE: Option<libc::c_int> = Some(23);
    pub(super) const HUGE_PAGE: Option<libc::c_int> = Some(libc::MADV_HUGEPAGE);
    pub(super) const NO_HUGE_PAGE: Option<libc::c_int> = Some(libc::MADV_NOHUGEPAGE);
    pub(super) const MAP_HUGE: Option<libc::c_int> =
        Some(libc::MAP_HUGETLB | (super::HUGE_PAGE_BYTES.trailing_zeros() as libc::c_int) << 26);
}

/// No system but Linux knows them.
#[cfg(not(target_os = "linux"))]
mod advice {
    pub(super) const POPULATE: Option<libc::c_int> = None;
    pub(super) const HUGE_PAGE: Option<libc::c_int> = None;
    pub(super) const NO_HUGE_PAGE: Option<libc::c_int> = None;
    pub(super) const MAP_HUGE: Option<libc::c_int> = None;
}

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

fn map(bytes: usize, protection: libc::c_int, flags: libc::c_int) -> Option<NonNull<u8>> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags;
    // SAFETY: an anonymous mapping at an address of the kernel's choice touches nothing that exists.
    let start = unsafe { libc::mmap(core::ptr::null_mut(), bytes, protection, flags, -1, 0) };
    if start == libc::MAP_FAILED { None } else { NonNull::new(start.cast()) }
}

/// `bytes` of zero pages, readable and writable, for a sparse table; `None` if there is no address space.
pub(crate) fn map_sparse(bytes: usize) -> Option<NonNull<u8>> {
    map(bytes, READ_WRITE, libc::MAP_NORESERVE)
}

/// Returns a mapping.
///
/// # Safety
///
/// 1. The range is a mapping of this module, or a part of one in whole pages, that nobody uses afterwards.
pub(crate) unsafe fn unmap(start: NonNull<u8>, bytes: usize) {
    let at = start.as_ptr().cast();
    // SAFETY: 1.
    if unsafe { libc::munmap(at, bytes) } != 0 {
        // Too many mappings to make two of one: the addresses stay, but not the memory behind them.
        // SAFETY: 1.
        let _ = unsafe { libc::madvise(at, bytes, libc::MADV_DONTNEED) };
    }
}

/// Addresses without memory, `bytes` of them at a multiple of `align`.
pub(crate) fn reserve(bytes: usize, align: usize) -> Option<NonNull<u8>> {
    map_aligned(bytes, align, libc::PROT_NONE, libc::MAP_NORESERVE)
}

/// One arena of zero pages at a multiple of its size.
pub(crate) fn map_arena() -> Option<NonNull<u8>> {
    map_aligned(ARENA_BYTES, ARENA_BYTES, READ_WRITE, 0)
}

fn map_aligned(
    bytes: usize,
    align: usize,
    protection: libc::c_int,
    flags: libc::c_int,
) -> Option<NonNull<u8>> {
    let start = map(bytes, protection, flags)?;
    if start.addr().get() % align == 0 {
        return Some(start);
    }
    // SAFETY: mapped just now, and known to nobody.
    unsafe { unmap(start, bytes) };
    let start = map(bytes.checked_add(align)?, protection, flags)?;
    let before = start.addr().get().wrapping_neg() % align;
    // SAFETY: `before` is less than `align`, by which the mapping is longer than `bytes`.
    let aligned = unsafe { start.add(before) };
    if before > 0 {
        // SAFETY: the whole pages before the aligned start, known to nobody.
        unsafe { unmap(start, before) };
    }
    // SAFETY: in or at the end of the mapping, which ends at `bytes + align`.
    let end = unsafe { aligned.add(bytes) };
    // SAFETY: the whole pages after the end, of which there is one at least as `before` is less than `align`.
    unsafe { unmap(end, align - before) };
    Some(aligned)
}

/// Makes reserved pages readable and writable; `false` if the system has no memory for them.
///
/// # Safety
///
/// 1. The range is part of a `reserve`d one, in whole pages.
pub(crate) unsafe fn commit(start: NonNull<u8>, bytes: usize) -> bool {
    // SAFETY: 1; more access takes nothing from anybody.
    unsafe { libc::mprotect(start.as_ptr().cast(), bytes, READ_WRITE) == 0 }
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

/// Drops the memory behind the whole pages of the range; they read as zero next. Returns the bytes of those pages.
///
/// # Safety
///
/// 1. The range is part of a private anonymous mapping, and no byte of it is needed any more.
pub(crate) unsafe fn purge(start: NonNull<u8>, bytes: usize) -> usize {
    let skip = start.addr().get().wrapping_neg() % PAGE_BYTES;
    let Some(bytes) = bytes.checked_sub(skip) else { return 0 };
    let bytes = bytes & !(PAGE_BYTES - 1);
    if bytes == 0 {
        return 0;
    }
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
/// 1. The range is part of a `reserve`d and `commit`ted one, in whole pages, and no byte of it is needed any more.
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
/// The advice is taken back at once: with it the kernel's scanner would later fill in again what was purged from the range.
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
    let last = unsafe { start.add(HUGE_PAGE_BYTES - PAGE_BYTES) };
    let mut is_resident = 0_u8;
    // SAFETY: 1; the answer for one page is one byte.
    let answer =
        unsafe { libc::mincore(last.as_ptr().cast(), PAGE_BYTES, (&raw mut is_resident).cast()) };
    answer == 0 && is_resident & 1 == 1
}

/// Puts a reserved huge page (`MAP_HUGETLB`) behind the range; `false`, and fresh small pages, if there is none. `None` if
/// there may be nothing behind the range.
///
/// # Safety
///
/// 1. The range is part of a `reserve`d and `commit`ted one at a multiple of its length, and nothing of it is in use.
pub(crate) unsafe fn map_reserved_huge_page(start: NonNull<u8>) -> Option<bool> {
    let Some(huge) = advice::MAP_HUGE else { return Some(false) };
    // Elsewhere first: a refusal at a fixed place can leave a hole there.
    let Some(trial) = map(HUGE_PAGE_BYTES, READ_WRITE, huge) else { return Some(false) };
    // SAFETY: 1: mapped just now, and known to nobody.
    unsafe { unmap(trial, HUGE_PAGE_BYTES) };
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | huge;
    let at = start.as_ptr().cast::<libc::c_void>();
    // SAFETY: 1.
    if unsafe { libc::mmap(at, HUGE_PAGE_BYTES, READ_WRITE, flags, -1, 0) } == at {
        return Some(true);
    }
    // SAFETY: 1.
    unsafe { renew(start, HUGE_PAGE_BYTES) }.then_some(false)
}
