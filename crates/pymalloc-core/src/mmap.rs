//! Owns the system calls: reserve, commit, populate and purge pages. Advice that the kernel refuses is dropped.

use core::ptr::NonNull;

use crate::config::{ARENA_BYTES, PAGE_BYTES};

/// Since Linux 5.14; older kernels answer EINVAL, and pages come one by one as before.
#[cfg(target_os = "linux")]
const MADV_POPULATE_WRITE: libc::c_int = 23;

fn map(bytes: usize, protection: libc::c_int, flags: libc::c_int) -> Option<NonNull<u8>> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags;
    // SAFETY: an anonymous mapping at an address of the kernel's choice touches nothing that exists.
    let start = unsafe { libc::mmap(core::ptr::null_mut(), bytes, protection, flags, -1, 0) };
    if start == libc::MAP_FAILED { None } else { NonNull::new(start.cast()) }
}

/// `bytes` of zero pages, readable and writable, for a sparse table; `None` if there is no address space.
pub(crate) fn map_sparse(bytes: usize) -> Option<NonNull<u8>> {
    map(bytes, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_NORESERVE)
}

/// Returns a mapping.
///
/// # Safety
///
/// 1. The range is a mapping of this module, or a part of one in whole pages, that nobody uses afterwards.
pub(crate) unsafe fn unmap(start: NonNull<u8>, bytes: usize) {
    // A failure (too many mappings) leaves the pages mapped: nothing to do about it, and no harm.
    // SAFETY: 1.
    let _ = unsafe { libc::munmap(start.as_ptr().cast(), bytes) };
}

/// Addresses without memory, `bytes` of them at a multiple of `align`.
pub(crate) fn reserve(bytes: usize, align: usize) -> Option<NonNull<u8>> {
    map_aligned(bytes, align, libc::PROT_NONE, libc::MAP_NORESERVE)
}

/// One arena of zero pages at a multiple of its size.
pub(crate) fn map_arena() -> Option<NonNull<u8>> {
    map_aligned(ARENA_BYTES, ARENA_BYTES, libc::PROT_READ | libc::PROT_WRITE, 0)
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
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: 1; more access takes nothing from anybody.
    unsafe { libc::mprotect(start.as_ptr().cast(), bytes, protection) == 0 }
}

/// Brings the pages of the range in at one stroke, with their content.
///
/// # Safety
///
/// 1. The range is mapped, readable and writable.
#[cfg(target_os = "linux")]
pub(crate) unsafe fn populate(start: NonNull<u8>, bytes: usize) {
    // SAFETY: 1; the advice keeps every byte.
    let _ = unsafe { libc::madvise(start.as_ptr().cast(), bytes, MADV_POPULATE_WRITE) };
}

/// Nothing, on systems without such an advice.
///
/// # Safety
///
/// None; it has the Linux face.
#[cfg(not(target_os = "linux"))]
pub(crate) unsafe fn populate(start: NonNull<u8>, bytes: usize) {
    let _ = (start, bytes);
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

/// Keeps the range out of transparent huge pages, whatever the system's default.
///
/// # Safety
///
/// 1. The range is a mapping, or a part of one in whole pages.
#[cfg(target_os = "linux")]
pub(crate) unsafe fn forbid_huge_pages(start: NonNull<u8>, bytes: usize) {
    // SAFETY: 1; the advice keeps every byte.
    let _ = unsafe { libc::madvise(start.as_ptr().cast(), bytes, libc::MADV_NOHUGEPAGE) };
}

/// Allows transparent huge pages in the range.
///
/// # Safety
///
/// 1. The range is a mapping, or a part of one in whole pages.
#[cfg(target_os = "linux")]
pub(crate) unsafe fn advise_huge_pages(start: NonNull<u8>, bytes: usize) {
    // SAFETY: 1; the advice keeps every byte.
    let _ = unsafe { libc::madvise(start.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
}

/// An arena in reserved huge pages; `None` if there are none, or none of an arena's size.
///
/// The kernel is asked for huge pages of exactly an arena's size, and refuses where it has none: no `/proc/meminfo`.
#[cfg(target_os = "linux")]
pub(crate) fn map_huge_arena() -> Option<NonNull<u8>> {
    let flags = libc::MAP_HUGETLB | (ARENA_BYTES.trailing_zeros() as libc::c_int) << 26;
    map(ARENA_BYTES, libc::PROT_READ | libc::PROT_WRITE, flags)
}

/// Nothing, on systems without such an advice.
///
/// # Safety
///
/// None; it has the Linux face.
#[cfg(not(target_os = "linux"))]
pub(crate) unsafe fn forbid_huge_pages(start: NonNull<u8>, bytes: usize) {
    let _ = (start, bytes);
}

/// Nothing, on systems without such an advice.
///
/// # Safety
///
/// None; it has the Linux face.
#[cfg(not(target_os = "linux"))]
pub(crate) unsafe fn advise_huge_pages(start: NonNull<u8>, bytes: usize) {
    let _ = (start, bytes);
}

/// None, on systems without `MAP_HUGETLB`.
#[cfg(not(target_os = "linux"))]
pub(crate) fn map_huge_arena() -> Option<NonNull<u8>> {
    None
}
