//! Owns the allocators that are measured for comparison only.

use std::ffi::c_void;

use crate::record::{self, Record, Records};

pub(crate) use crate::mimalloc2::mimalloc2;
pub(crate) use compiled::{jemalloc, snmalloc};

/// A [`Record`] of functions that take no context; each is called in tail position.
macro_rules! plain {
    ($malloc:path, $calloc:path, $realloc:path, $free:path) => {{
        unsafe extern "C" fn malloc(_: *mut c_void, size: usize) -> *mut c_void {
            // SAFETY: any size is allowed.
            unsafe { $malloc(size) }
        }
        unsafe extern "C" fn calloc(_: *mut c_void, nelem: usize, elsize: usize) -> *mut c_void {
            // SAFETY: any product is allowed.
            unsafe { $calloc(nelem, elsize) }
        }
        unsafe extern "C" fn realloc(_: *mut c_void, ptr: *mut c_void, size: usize) -> *mut c_void {
            // SAFETY: the caller of the record passes null or a live block of this allocator.
            unsafe { $realloc(ptr, size) }
        }
        unsafe extern "C" fn free(_: *mut c_void, ptr: *mut c_void) {
            // SAFETY: the caller of the record passes null or a live block, for the last time.
            unsafe { $free(ptr) }
        }
        $crate::record::Record { ctx: std::ptr::null_mut(), malloc, calloc, realloc, free }
    }};
}

/// mimalloc 3 through its plain functions.
pub(crate) fn mimalloc3() -> Option<Records> {
    use libmimalloc_sys::{mi_calloc, mi_free, mi_malloc, mi_realloc};
    Some(record::all(plain!(mi_malloc, mi_calloc, mi_realloc, mi_free)))
}

/// The memory that `null` hands out: what a replay writes and reads of a block fits.
#[repr(align(16))]
struct Scratch([u8; 64]);

/// An allocator that does nothing: each request gets the same block.
pub(crate) fn null() -> Option<Records> {
    unsafe extern "C" fn malloc(ctx: *mut c_void, _: usize) -> *mut c_void {
        ctx
    }
    unsafe extern "C" fn calloc(ctx: *mut c_void, _: usize, _: usize) -> *mut c_void {
        ctx
    }
    unsafe extern "C" fn realloc(ctx: *mut c_void, _: *mut c_void, _: usize) -> *mut c_void {
        ctx
    }
    unsafe extern "C" fn free(_: *mut c_void, _: *mut c_void) {}
    let scratch = Box::leak(Box::new(Scratch([0; 64])));
    let ctx = std::ptr::from_mut(&mut scratch.0).cast();
    Some(record::all(Record { ctx, malloc, calloc, realloc, free }))
}

/// Allocators that are compiled from C and C++ for comparison only.
#[cfg(feature = "peers")]
mod compiled {
    use super::{Records, c_void, record};

    pub(crate) fn jemalloc() -> Option<Records> {
        use tikv_jemalloc_sys as je;
        Some(record::all(plain!(je::malloc, je::calloc, je::realloc, je::free)))
    }

    pub(crate) fn snmalloc() -> Option<Records> {
        use snmalloc_sys::{sn_calloc, sn_free, sn_malloc, sn_realloc};
        Some(record::all(plain!(sn_malloc, sn_calloc, sn_realloc, sn_free)))
    }
}

/// A build without peers has none of them.
#[cfg(not(feature = "peers"))]
mod compiled {
    use super::Records;

    pub(crate) fn jemalloc() -> Option<Records> {
        None
    }

    pub(crate) fn snmalloc() -> Option<Records> {
        None
    }
}
