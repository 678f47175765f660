//! Limits the memory of a domain, in Rust: a replacement, set before the first block, that counts what the C library gives.
//! In C: `c/limit_memory.c`.

use std::{ptr::NonNull, sync::atomic::AtomicUsize, sync::atomic::Ordering::Relaxed};

use malloc_api::{LibcMalloc, Malloc};
use pymem_domains::{AllocatorRecord, Domain, Domains, Profile};

const LIMIT: usize = 1_000;
static USED: AtomicUsize = AtomicUsize::new(0);
struct Limited;

/// Books `size` bytes, allocates, and corrects the books to what the block has.
fn book(size: usize, allocate: impl FnOnce() -> Option<NonNull<u8>>) -> Option<NonNull<u8>> {
    let fits = |used: usize| used.checked_add(size).filter(|used| *used <= LIMIT);
    USED.fetch_update(Relaxed, Relaxed, fits).ok()?;
    let block = allocate();
    USED.fetch_add(bytes_of(block).wrapping_sub(size), Relaxed); // which wraps too
    block
}

fn bytes_of(block: Option<NonNull<u8>>) -> usize {
    // SAFETY: null, or a live block of the C library.
    unsafe { libc::malloc_usable_size(block.map_or(std::ptr::null_mut(), NonNull::as_ptr).cast()) }
}

// SAFETY: 1-5: every call that fits is passed on as it is.
unsafe impl Malloc for Limited {
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        book(size, || LibcMalloc.malloc(size))
    }
    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        book(nelem.checked_mul(elsize)?, || LibcMalloc.calloc(nelem, elsize))
    }
    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        let old = bytes_of(ptr);
        // SAFETY: the caller's duties 1 and 2.
        let block = book(new_size, || unsafe { LibcMalloc.realloc(ptr, new_size) })?;
        USED.fetch_sub(old, Relaxed);
        Some(block)
    }
    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        USED.fetch_sub(bytes_of(ptr), Relaxed);
        // SAFETY: the caller's duties 1 and 2.
        unsafe { LibcMalloc.free(ptr) };
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let domains = Domains::new(Profile::NEWEST, None)?;
    domains.set_allocator(Domain::Mem, AllocatorRecord::new(&Limited))?;
    let mem = domains.get(Domain::Mem);
    let block = mem.malloc(600);
    assert!(block.is_some() && mem.calloc(6, 100).is_none(), "400 bytes are left");
    // SAFETY: live, of the mem domain, not used again.
    unsafe { mem.free(block) };
    assert_eq!(USED.load(Relaxed), 0);
    Ok(())
}
