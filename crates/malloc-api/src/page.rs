//! Owns how many bytes a page of this system has.

use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Bytes in a page of this system, a power of two: 4 KiB on x86-64, and 4, 16 or 64 KiB on aarch64.
///
/// The system is asked once. The function neither allocates nor takes a lock.
///
/// # Examples
///
/// ```
/// assert!(malloc_api::page_bytes().is_power_of_two());
/// ```
#[must_use]
pub fn page_bytes() -> usize {
    static PAGE_BYTES: AtomicUsize = AtomicUsize::new(0);
    let known = PAGE_BYTES.load(Relaxed);
    if known != 0 {
        return known;
    }
    // SAFETY: asks for a constant of the system.
    let asked = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    // The largest page there is, where a system does not say.
    let bytes = usize::try_from(asked).unwrap_or(64 << 10);
    PAGE_BYTES.store(bytes, Relaxed);
    bytes
}
