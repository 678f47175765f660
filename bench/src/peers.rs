//! Owns the allocators that are measured for comparison only.

use std::cell::UnsafeCell;
use std::ffi::c_void;
use std::ptr::NonNull;

use malloc_api::AllocatorRecord;

use crate::allocators::{self, Records};

pub(crate) use crate::mimalloc2::mimalloc2;
pub(crate) use compiled::{jemalloc, snmalloc};

type Block = Option<NonNull<u8>>;

/// What C takes for a block.
fn as_c(block: Block) -> *mut c_void {
    block.map_or(std::ptr::null_mut(), |block| block.as_ptr().cast())
}

/// What C has given.
fn from_c(block: *mut c_void) -> Block {
    NonNull::new(block.cast())
}

/// A record that call C functions without a context, each in tail position.
macro_rules! plain {
    ($malloc:path, $calloc:path, $realloc:path, $free:path) => {{
        unsafe extern "C" fn malloc(_: *mut c_void, size: usize) -> Block {
            // SAFETY: any size is allowed.
            from_c(unsafe { $malloc(size) })
        }
        unsafe extern "C" fn calloc(_: *mut c_void, nelem: usize, elsize: usize) -> Block {
            // SAFETY: any product is allowed.
            from_c(unsafe { $calloc(nelem, elsize) })
        }
        unsafe extern "C" fn realloc(_: *mut c_void, block: Block, size: usize) -> Block {
            // SAFETY: the caller passes `None` or a live block of this allocator.
            from_c(unsafe { $realloc(as_c(block), size) })
        }
        unsafe extern "C" fn free(_: *mut c_void, block: Block) {
            // SAFETY: the caller passes `None` or a live block, for the last time.
            unsafe { $free(as_c(block)) }
        }
        // SAFETY: 1. the functions ignore the context; 2. they keep the contract for every size above 0, which is all that
        // replays ask for; 3. on any thread.
        unsafe { AllocatorRecord::from_parts(std::ptr::null_mut(), malloc, calloc, realloc, free) }
    }};
}

/// mimalloc 3 through its plain functions.
pub(crate) fn mimalloc3() -> Option<Records> {
    use libmimalloc_sys::{mi_calloc, mi_free, mi_malloc, mi_realloc};
    Some(allocators::all(plain!(mi_malloc, mi_calloc, mi_realloc, mi_free)))
}

/// The memory that `null` hands out: what a replay writes and reads of a block fits. No other data is in its lines of the cache.
#[repr(align(128))]
struct Scratch(UnsafeCell<[u8; 128]>);

thread_local! {
    /// A thread's own: threads that write one line take turns at it, and would be slower than most allocators.
    static SCRATCH: Scratch = const { Scratch(UnsafeCell::new([0; 128])) };
}

/// An allocator that does nothing: each request of a thread gets the same block.
pub(crate) fn null() -> Option<Records> {
    unsafe extern "C" fn malloc(_: *mut c_void, _: usize) -> Block {
        SCRATCH.with(|scratch| from_c(scratch.0.get().cast()))
    }
    unsafe extern "C" fn calloc(ctx: *mut c_void, _: usize, size: usize) -> Block {
        // SAFETY: any size is allowed.
        unsafe { malloc(ctx, size) }
    }
    unsafe extern "C" fn realloc(ctx: *mut c_void, _: Block, size: usize) -> Block {
        // SAFETY: any size is allowed.
        unsafe { malloc(ctx, size) }
    }
    unsafe extern "C" fn free(_: *mut c_void, _: Block) {}
    let ctx = std::ptr::null_mut();
    // SAFETY: 1. the functions ignore the context; 2. not kept, and not needed: a replay writes two words of a block, reads
    // one byte of it and believes neither; both fit the scratch memory, which lives as long as the replay's threads use it, and
    // a block that one thread hands to another is read alone; 3. on any thread.
    Some(allocators::all(unsafe {
        AllocatorRecord::from_parts(ctx, malloc, calloc, realloc, free)
    }))
}

/// Allocators that are compiled from C and C++ for comparison only.
#[cfg(feature = "peers")]
mod compiled {
    use super::{AllocatorRecord, Block, Records, allocators, as_c, c_void, from_c};

    pub(crate) fn jemalloc() -> Option<Records> {
        use tikv_jemalloc_sys as je;
        Some(allocators::all(plain!(je::malloc, je::calloc, je::realloc, je::free)))
    }

    pub(crate) fn snmalloc() -> Option<Records> {
        use snmalloc_sys::{sn_calloc, sn_free, sn_malloc, sn_realloc};
        Some(allocators::all(plain!(sn_malloc, sn_calloc, sn_realloc, sn_free)))
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
