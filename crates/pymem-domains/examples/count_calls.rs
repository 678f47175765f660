//! Counts the calls of a domain: a wrapper that goes on while blocks are live, and comes off again. In C: `c/count_calls.c`.

use std::{ptr::NonNull, sync::atomic::AtomicUsize, sync::atomic::Ordering::Relaxed};

use malloc_api::Malloc;
use pymem_domains::{AllocatorRecord, Domain, Domains, Profile};

struct CountCalls {
    inner: AllocatorRecord,
    calls: AtomicUsize,
}

// SAFETY: 1-5: every call is passed on as it is.
unsafe impl Malloc for CountCalls {
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        self.calls.fetch_add(1, Relaxed);
        self.inner.malloc(size)
    }

    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        self.calls.fetch_add(1, Relaxed);
        self.inner.calloc(nelem, elsize)
    }

    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        self.calls.fetch_add(1, Relaxed);
        // SAFETY: the caller's duties 1 and 2.
        unsafe { self.inner.realloc(ptr, new_size) }
    }

    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        self.calls.fetch_add(1, Relaxed);
        // SAFETY: the caller's duties 1 and 2.
        unsafe { self.inner.free(ptr) }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let domains = Domains::new(Profile::NEWEST, None)?;
    let mem = domains.get(Domain::Mem);
    let before = mem.malloc(10);

    let inner = domains.get_allocator(Domain::Mem);
    let counter: &CountCalls =
        Box::leak(Box::new(CountCalls { inner, calls: AtomicUsize::new(0) }));
    // SAFETY: the counter serves the very blocks of what it wraps.
    unsafe { domains.wrap_allocator(Domain::Mem, |_| AllocatorRecord::new(counter)) };

    let during = mem.malloc(10);
    // SAFETY: live, of the mem domain, not used again; the wrapper takes blocks that are older than itself.
    unsafe { mem.free(before) };
    domains.set_allocator(Domain::Mem, inner)?;
    // SAFETY: live, of the mem domain, not used again.
    unsafe { mem.free(during) };

    assert_eq!(counter.calls.load(Relaxed), 2);
    println!("2 calls while the counter was on");
    Ok(())
}
