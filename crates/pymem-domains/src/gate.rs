//! Owns the record that a domain publishes until its first use: it marks the domain as used, so that the base allocator
//! can no longer be replaced, publishes the real record and passes the call on. Every later call goes straight there.

use core::ffi::c_void;
use core::ptr::NonNull;

use malloc_api::{AllocatorRecord, Malloc};

/// What stands behind a gate: it can say which record really serves a domain.
pub(crate) trait Gated: Sync + 'static {
    /// Marks domain number `domain` as used, publishes its record and returns it.
    fn open(&self, domain: usize) -> &'static AllocatorRecord;
    /// The record that serves domain number `domain`, without marking it.
    fn peek(&self, domain: usize) -> &'static AllocatorRecord;
}

/// The gate of domain number `D` before `gated`.
pub(crate) const fn gate<G: Gated, const D: usize>(gated: &'static G) -> AllocatorRecord {
    // SAFETY: 1. the context is the `&'static G` that the functions turn it back into. 2. they pass every call on to
    // the same method of a record, which keeps the promises. 3. `G: Sync`, and records are `Sync`.
    unsafe {
        AllocatorRecord::from_parts(
            core::ptr::from_ref(gated).cast_mut().cast(),
            malloc::<G, D>,
            calloc::<G, D>,
            realloc::<G, D>,
            free::<G, D>,
        )
    }
}

/// # Safety
///
/// 1. `ctx` came from a `&'static G`.
unsafe fn gated<G: Gated>(ctx: *mut c_void) -> &'static G {
    // SAFETY: by 1.
    unsafe { &*ctx.cast::<G>() }
}

/// # Safety
///
/// 1. `ctx` came from a `&'static G`.
#[cold]
unsafe extern "C" fn malloc<G: Gated, const D: usize>(
    ctx: *mut c_void,
    size: usize,
) -> Option<NonNull<u8>> {
    // SAFETY: by 1.
    let gated = unsafe { gated::<G>(ctx) };
    gated.open(D).malloc(size)
}

/// # Safety
///
/// 1. `ctx` came from a `&'static G`.
#[cold]
unsafe extern "C" fn calloc<G: Gated, const D: usize>(
    ctx: *mut c_void,
    nelem: usize,
    elsize: usize,
) -> Option<NonNull<u8>> {
    // SAFETY: by 1.
    let gated = unsafe { gated::<G>(ctx) };
    gated.open(D).calloc(nelem, elsize)
}

/// # Safety
///
/// 1. `ctx` came from a `&'static G`.
/// 2. The duties of [`Malloc::realloc`].
#[cold]
unsafe extern "C" fn realloc<G: Gated, const D: usize>(
    ctx: *mut c_void,
    ptr: Option<NonNull<u8>>,
    new_size: usize,
) -> Option<NonNull<u8>> {
    // SAFETY: by 1.
    let gated = unsafe { gated::<G>(ctx) };
    // SAFETY: by 2; a live block shows that the record is the one that made it, since a used domain keeps its blocks.
    unsafe { gated.open(D).realloc(ptr, new_size) }
}

/// # Safety
///
/// 1. `ctx` came from a `&'static G`.
/// 2. The duties of [`Malloc::free`].
#[cold]
unsafe extern "C" fn free<G: Gated, const D: usize>(ctx: *mut c_void, ptr: Option<NonNull<u8>>) {
    // SAFETY: by 1.
    let gated = unsafe { gated::<G>(ctx) };
    // SAFETY: by 2; as in `realloc`.
    unsafe { gated.peek(D).free(ptr) }
}
