//! Logs the calls of a domain, as C code does it: a record of a context and four functions that wraps another record.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use malloc_api::Malloc;
use pymem_domains::{AllocatorRecord, Domain, Domains, Profile, PyMemAllocatorEx, ThreadSafety};

/// The context: what it wraps, and a log of fixed size, since a log must not allocate from the domain that it logs.
struct Log {
    inner: AllocatorRecord,
    calls: [AtomicUsize; 64],
    next: AtomicUsize,
}

impl Log {
    fn add(&self, call: usize) {
        self.calls[self.next.fetch_add(1, Relaxed) % self.calls.len()].store(call, Relaxed);
    }
}

/// The names that stand in the log by number.
const NAMES: [&str; 4] = ["malloc", "calloc", "realloc", "free"];

/// # Safety
///
/// 1. `ctx` is a `Log` that lives for ever.
unsafe fn log(ctx: *mut c_void, call: usize) -> AllocatorRecord {
    // SAFETY: by 1.
    let log = unsafe { &*ctx.cast::<Log>() };
    log.add(call);
    log.inner
}

unsafe extern "C" fn malloc(ctx: *mut c_void, size: usize) -> Option<NonNull<u8>> {
    // SAFETY: 1. the record's context.
    unsafe { log(ctx, 0) }.malloc(size)
}

unsafe extern "C" fn calloc(ctx: *mut c_void, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
    // SAFETY: 1. the record's context.
    unsafe { log(ctx, 1) }.calloc(nelem, elsize)
}

unsafe extern "C" fn realloc(
    ctx: *mut c_void,
    ptr: Option<NonNull<u8>>,
    size: usize,
) -> Option<NonNull<u8>> {
    // SAFETY: 1. the record's context.
    let inner = unsafe { log(ctx, 2) };
    // SAFETY: the caller's duties.
    unsafe { inner.realloc(ptr, size) }
}

unsafe extern "C" fn free(ctx: *mut c_void, ptr: Option<NonNull<u8>>) {
    // SAFETY: 1. the record's context.
    let inner = unsafe { log(ctx, 3) };
    // SAFETY: the caller's duties.
    unsafe { inner.free(ptr) }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let domains = Domains::new(Profile::CURRENT, None)?;
    let inner = domains.get_allocator(Domain::Obj);
    let calls = std::array::from_fn(|_| AtomicUsize::new(0));
    let ctx: &'static Log = Box::leak(Box::new(Log { inner, calls, next: AtomicUsize::new(0) }));
    let record = PyMemAllocatorEx {
        ctx: std::ptr::from_ref(ctx).cast_mut().cast(),
        malloc: Some(malloc),
        calloc: Some(calloc),
        realloc: Some(realloc),
        free: Some(free),
    };
    // SAFETY: 1. the context is a `Log`, for ever. 2. every call is passed on. 3. its state is atomic.
    let record = unsafe { AllocatorRecord::from_c(record, ThreadSafety::AnyThread) }?;
    // SAFETY: it serves the very blocks of what it wraps.
    unsafe { domains.wrap_allocator(Domain::Obj, |_| record) };

    let obj = domains.get(Domain::Obj);
    let block = obj.calloc(4, 8);
    // SAFETY: live, of the obj domain; the old pointer is not used again.
    let block = unsafe { obj.realloc(block, 64) };
    // SAFETY: live, of the obj domain, not used again.
    unsafe { obj.free(block) };

    let log: Vec<&str> =
        ctx.calls[..ctx.next.load(Relaxed)].iter().map(|call| NAMES[call.load(Relaxed)]).collect();
    assert_eq!(log, ["calloc", "realloc", "free"]);
    println!("{}", log.join(", "));
    Ok(())
}
