//! Owns what Linux and glibc tell and do about the process: its resident memory, and whether it has other threads. `no_resident.rs` stands in elsewhere.

use std::fs::File;
use std::io::Read as _;

/// Bytes of physical memory that the process holds; 0 when the system does not say. Does not allocate.
pub(crate) fn bytes() -> usize {
    let mut text = [0; 128];
    let Ok(mut file) = File::open("/proc/self/statm") else { return 0 };
    let Ok(len) = file.read(&mut text) else { return 0 };
    // Sizes in pages: of the address space, then of what is resident.
    let pages = core::str::from_utf8(&text[..len])
        .ok()
        .and_then(|text| text.split(' ').nth(1)?.parse::<usize>().ok());
    // SAFETY: asks for a constant of the system.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    pages.unwrap_or(0) * usize::try_from(page).unwrap_or(0)
}

/// Whether the calling thread is the only one of the process; `false` when the system does not say. Does not allocate.
pub(crate) fn is_only_thread() -> bool {
    let mut text = [0; 512];
    let Ok(mut file) = File::open("/proc/self/stat") else { return false };
    let Ok(len) = file.read(&mut text) else { return false };
    // The second field, the program's name in brackets, may hold anything; the count is the 18th one after it.
    let fields = text[..len].rsplit(|byte| *byte == b')').next().unwrap_or_default();
    fields.split(|byte| *byte == b' ').filter(|field| !field.is_empty()).nth(17) == Some(b"1")
}

/// Gives the C library's free memory back to the system.
pub(crate) fn trim_libc() {
    // SAFETY: takes the library's own locks, and touches free memory only.
    unsafe { libc::malloc_trim(0) };
}
