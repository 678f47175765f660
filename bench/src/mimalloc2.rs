//! Owns mimalloc 2, which lives in a shared library of its own: its names are those of version 3.

use std::ffi::{CStr, CString, c_void};
use std::ptr::NonNull;

use malloc_api::AllocatorRecord;

use crate::allocators::{self, Records};

type Block = Option<NonNull<u8>>;

/// The addresses of its functions.
#[derive(Clone, Copy)]
struct Table {
    malloc: unsafe extern "C" fn(usize) -> Block,
    calloc: unsafe extern "C" fn(usize, usize) -> Block,
    realloc: unsafe extern "C" fn(Block, usize) -> Block,
    free: unsafe extern "C" fn(Block),
}

unsafe extern "C" fn malloc(ctx: *mut c_void, size: usize) -> Block {
    // SAFETY: the context is the leaked table of `mimalloc2`.
    let table = unsafe { &*ctx.cast::<Table>() };
    // SAFETY: any size is allowed.
    unsafe { (table.malloc)(size) }
}

unsafe extern "C" fn calloc(ctx: *mut c_void, nelem: usize, elsize: usize) -> Block {
    // SAFETY: the context is the leaked table of `mimalloc2`.
    let table = unsafe { &*ctx.cast::<Table>() };
    // SAFETY: any product is allowed.
    unsafe { (table.calloc)(nelem, elsize) }
}

unsafe extern "C" fn realloc(ctx: *mut c_void, block: Block, size: usize) -> Block {
    // SAFETY: the context is the leaked table of `mimalloc2`.
    let table = unsafe { &*ctx.cast::<Table>() };
    // SAFETY: the caller passes `None` or a live block of this allocator.
    unsafe { (table.realloc)(block, size) }
}

unsafe extern "C" fn free(ctx: *mut c_void, block: Block) {
    // SAFETY: the context is the leaked table of `mimalloc2`.
    let table = unsafe { &*ctx.cast::<Table>() };
    // SAFETY: the caller passes `None` or a live block, for the last time.
    unsafe { (table.free)(block) }
}

/// mimalloc 2 from the shared library that `build.rs` made. Its functions are called through the context, which holds
/// their addresses: one load more than a direct call, and no stub of the dynamic linker.
pub(crate) fn mimalloc2() -> Option<Records> {
    let path = env!("PYMEM_BENCH_MIMALLOC2");
    if path.is_empty() {
        return None;
    }
    let path = CString::new(path).ok()?;
    // SAFETY: a terminated path; the library's initialisers are those of mimalloc 2, which ask for nothing.
    let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if library.is_null() {
        return None;
    }
    let symbol = |name: &CStr| {
        // SAFETY: `library` is open and never closed; the name is terminated.
        let address = unsafe { libc::dlsym(library, name.as_ptr()) };
        (!address.is_null()).then_some(address)
    };
    let [malloc_address, calloc_address, realloc_address, free_address] =
        [symbol(c"mi_malloc")?, symbol(c"mi_calloc")?, symbol(c"mi_realloc")?, symbol(c"mi_free")?];
    let table = Table {
        // SAFETY: `void *mi_malloc(size_t)` in mimalloc.h.
        malloc: unsafe {
            std::mem::transmute::<*mut c_void, unsafe extern "C" fn(usize) -> Block>(malloc_address)
        },
        // SAFETY: `void *mi_calloc(size_t, size_t)` in mimalloc.h.
        calloc: unsafe {
            std::mem::transmute::<*mut c_void, unsafe extern "C" fn(usize, usize) -> Block>(
                calloc_address,
            )
        },
        // SAFETY: `void *mi_realloc(void *, size_t)` in mimalloc.h.
        realloc: unsafe {
            std::mem::transmute::<*mut c_void, unsafe extern "C" fn(Block, usize) -> Block>(
                realloc_address,
            )
        },
        // SAFETY: `void mi_free(void *)` in mimalloc.h.
        free: unsafe {
            std::mem::transmute::<*mut c_void, unsafe extern "C" fn(Block)>(free_address)
        },
    };
    let ctx = std::ptr::from_mut(Box::leak(Box::new(table))).cast();
    // SAFETY: 1. the table is leaked, and the library stays open; 2. mimalloc keeps the contract for every size above 0,
    // which is all that replays ask for; 3. on any thread.
    Some(allocators::all(unsafe {
        AllocatorRecord::from_parts(ctx, malloc, calloc, realloc, free)
    }))
}
