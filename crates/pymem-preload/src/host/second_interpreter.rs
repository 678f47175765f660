//! Owns the moment at which the host makes a second interpreter, which since 3.12 may have a GIL of its own: the pools must let any
//! thread in before that runs, and a profile must count so.
//!
//! Each interpreter's state but that of the first is a block of raw that the host asks for by `calloc(1, size)`, before anything of
//! the interpreter runs: `alloc_interpreter` of 3.12 to 3.15, 190 to 380 KiB, and since 3.13 one more for its own pools, of 257. The
//! thread that asks holds the first interpreter's GIL in 3.12, and none in later versions (`_PyXI_NewInterpreter` gives it up), so
//! that other threads may be in the pools meanwhile. Any such call of that size counts: a mistake costs speed alone.

use core::ffi::c_void;
use core::ptr::NonNull;
use std::sync::OnceLock;

use malloc_api::CallocFn;
use pymem_domains::{AllocatorRecord, Domains, PyMemAllocatorEx};

/// No interpreter's state is smaller.
const STATE_BYTES_MIN: usize = 64 << 10;

/// What is to be shared, whom to tell first, and the function of raw behind ours.
static WATCHED: OnceLock<(Domains, fn(), CallocFn)> = OnceLock::new();

/// The record of `raw` by whose calls a second interpreter is noticed, before which `tell` is called and `domains` are shared. They are at
/// once where they are not the first.
pub(crate) fn watched(domains: Domains, tell: fn(), raw: AllocatorRecord) -> AllocatorRecord {
    let PyMemAllocatorEx { ctx, malloc, calloc, realloc, free } = raw.to_c();
    let (Some(malloc), Some(inner), Some(realloc), Some(free)) = (malloc, calloc, realloc, free)
    else {
        domains.share();
        return raw;
    };
    if WATCHED.set((domains, tell, inner)).is_err() {
        domains.share();
        return raw;
    }
    // SAFETY: 1, 2, 3: the context and functions of a record, one of which is called by ours.
    unsafe { AllocatorRecord::from_parts(ctx, malloc, calloc_watched, realloc, free) }
}

/// # Safety
///
/// 1. `ctx` is that of the record behind ours.
unsafe extern "C" fn calloc_watched(
    ctx: *mut c_void,
    nelem: usize,
    elsize: usize,
) -> Option<NonNull<u8>> {
    let (domains, tell, inner) = WATCHED.get()?;
    if nelem == 1 && elsize >= STATE_BYTES_MIN {
        tell();
        domains.share();
    }
    // SAFETY: 1: by duty 1.
    unsafe { inner(ctx, nelem, elsize) }
}
