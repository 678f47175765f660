//! Limits the memory of a domain, in Rust: a replacement, set before the first block, that keeps sizes before its blocks.
//! In C: `c/limit_memory.c`.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use malloc_api::{LibcMalloc, MIN_ALIGN, Malloc};
use pymem_domains::{AllocatorRecord, Domain, Domains, Profile};

/// Serves at most `limit` bytes at a time. Each block has its size in the [`MIN_ALIGN`] bytes before it.
struct Limited {
    limit: usize,
    used: AtomicUsize,
}

impl Limited {
    /// Books `new` bytes in place of `old`; `false` when they are too many.
    fn book(&self, old: usize, new: usize) -> bool {
        let booked = |used: usize| used.checked_sub(old)?.checked_add(new);
        let fits = |used| booked(used).filter(|used| *used <= self.limit);
        self.used.fetch_update(Relaxed, Relaxed, fits).is_ok()
    }

    /// Books and serves `new` bytes by `allocate`, which is told how many bytes to get.
    fn serve(
        &self,
        old: usize,
        new: usize,
        allocate: impl FnOnce(usize) -> Option<NonNull<u8>>,
    ) -> Option<NonNull<u8>> {
        let bytes = new.checked_add(MIN_ALIGN)?;
        if !self.book(old, new) {
            return None;
        }
        let Some(base) = allocate(bytes) else {
            self.book(new, old);
            return None;
        };
        // SAFETY: a block of at least `MIN_ALIGN` bytes, aligned for the size.
        unsafe { base.cast::<usize>().write(new) };
        // SAFETY: as above.
        Some(unsafe { base.add(MIN_ALIGN) })
    }
}

/// The start and the size of a block.
///
/// # Safety
///
/// 1. `block` is live and was made by `Limited::serve`.
unsafe fn base_of(block: NonNull<u8>) -> (NonNull<u8>, usize) {
    // SAFETY: by 1, `MIN_ALIGN` bytes stand before the block.
    let base = unsafe { block.sub(MIN_ALIGN) };
    // SAFETY: by 1, they begin with its size.
    (base, unsafe { base.cast::<usize>().read() })
}

// SAFETY: 1-5: blocks are those of `LibcMalloc`, less the first `MIN_ALIGN` bytes.
unsafe impl Malloc for Limited {
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        self.serve(0, size, |bytes| LibcMalloc.malloc(bytes))
    }

    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        self.serve(0, nelem.checked_mul(elsize)?, |bytes| LibcMalloc.calloc(1, bytes))
    }

    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        let Some(block) = ptr else { return self.malloc(new_size) };
        // SAFETY: the caller's duty 1.
        let (base, size) = unsafe { base_of(block) };
        self.serve(size, new_size, |bytes| {
            // SAFETY: the block's start is live in the C library; the caller's duty 2.
            unsafe { LibcMalloc.realloc(Some(base), bytes) }
        })
    }

    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        let Some(block) = ptr else { return };
        // SAFETY: the caller's duty 1.
        let (base, size) = unsafe { base_of(block) };
        self.book(size, 0);
        // SAFETY: the block's start is live in the C library; the caller's duty 2.
        unsafe { LibcMalloc.free(Some(base)) };
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    static LIMITED: Limited = Limited { limit: 1_000, used: AtomicUsize::new(0) };
    let domains = Domains::new(Profile::CURRENT, None)?;
    domains.set_allocator(Domain::Mem, AllocatorRecord::new(&LIMITED))?;

    let mem = domains.get(Domain::Mem);
    let first = mem.malloc(600).expect("within the limit");
    assert!(mem.malloc(600).is_none());
    // SAFETY: live, of the mem domain; the old pointer is not used again.
    let first = unsafe { mem.realloc(Some(first), 100) };
    let second = mem.calloc(9, 100).expect("900 bytes are left");
    for block in [first, Some(second)] {
        // SAFETY: live, of the mem domain, not used again.
        unsafe { mem.free(block) };
    }
    assert_eq!(LIMITED.used.load(Relaxed), 0);
    println!("never more than 1000 bytes at a time");
    Ok(())
}
