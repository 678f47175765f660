//! Owns giving back those pages of the library's file that its start alone has touched: code that ran once, and what the dynamic
//! linker read. They stay in the kernel's cache, and come back when they are needed.

use core::ffi::{c_int, c_void};
use core::slice;

use crate::service;

/// What `/proc/self/pagemap` says of a page: that it is in memory, and that it is the file's and not a changed copy.
const PRESENT: u64 = 1 << 63;
const OF_FILE: u64 = 1 << 61;

// Behind the constructors of the library's C code, where the linker sorts by any number, as lld does; with GNU ld before all, where
// nothing is installed yet.
#[used]
#[unsafe(link_section = ".init_array.70000")]
static AFTER_OTHERS: extern "C" fn() = after_others;

/// Gives back what the other constructors have touched since the start.
extern "C" fn after_others() {
    if service::installed().is_some() {
        give_back();
    }
}

/// Gives back the pages of code and constants, if nobody has changed any of them: a breakpoint of a debugger or a probe of the kernel
/// is a changed page, and would be lost. Pages that cannot be looked at stay.
pub(crate) fn give_back() {
    // SAFETY: the callback ignores what is handed on.
    unsafe { libc::dl_iterate_phdr(Some(give_back_ours), core::ptr::null_mut()) };
}

/// Ends the iteration with this library.
///
/// # Safety
///
/// 1. `info` is the loader's description of a loaded object.
unsafe extern "C" fn give_back_ours(
    info: *mut libc::dl_phdr_info,
    _size: usize,
    _: *mut c_void,
) -> c_int {
    // SAFETY: by duty 1.
    let info = unsafe { &*info };
    // SAFETY: the loader's table of that many headers (duty 1).
    let headers = unsafe { slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    let page = malloc_api::page_bytes();
    let loaded = headers.iter().filter(|header| header.p_type == libc::PT_LOAD);
    let pages = loaded.map(|header| {
        let start = info.dlpi_addr as usize + header.p_vaddr as usize;
        let is_writable = header.p_flags & libc::PF_W != 0;
        (is_writable, Pages::around(start, header.p_memsz as usize, page))
    });
    let here = give_back as *const () as usize;
    if !pages.clone().any(|(_, pages)| pages.contains(here)) {
        return 0;
    }
    // SAFETY: a path that ends with a NUL.
    let map =
        unsafe { libc::open(c"/proc/self/pagemap".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    for (is_writable, pages) in pages {
        if !is_writable && pages.are_unchanged(map) {
            // SAFETY: code and constants as they are in the file (just looked at), which the next access reads from there again.
            unsafe { libc::madvise(pages.start as *mut c_void, pages.bytes, libc::MADV_DONTNEED) };
        }
    }
    // SAFETY: nobody else has the descriptor; one that is not open is an error.
    unsafe { libc::close(map) };
    1
}

/// A run of whole pages.
#[derive(Clone, Copy)]
struct Pages {
    start: usize,
    bytes: usize,
    page: usize,
}

impl Pages {
    /// The pages of `page` bytes that hold `bytes` from `start` on.
    fn around(start: usize, bytes: usize, page: usize) -> Self {
        let first = start / page * page;
        Self { start: first, bytes: (start + bytes).next_multiple_of(page) - first, page }
    }

    fn contains(self, address: usize) -> bool {
        (self.start..self.start + self.bytes).contains(&address)
    }

    /// Whether each page that is in memory is still the file's, as far as the kernel tells by `map`, its file of pages.
    fn are_unchanged(self, map: c_int) -> bool {
        let mut entries = vec![0_u64; self.bytes / self.page];
        let bytes = size_of_val(entries.as_slice());
        let at = self.start / self.page * size_of::<u64>();
        // SAFETY: `entries` has room for so many bytes, and any bytes are numbers; a file that is not open is an error.
        let read =
            unsafe { libc::pread(map, entries.as_mut_ptr().cast(), bytes, at as libc::off_t) };
        read.unsigned_abs() == bytes
            && entries.iter().all(|entry| entry & PRESENT == 0 || entry & OF_FILE != 0)
    }
}
