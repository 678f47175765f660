//! Owns mimalloc 2, which lives in a shared library of its own: its names are those of version 3.

use std::ffi::{CStr, CString, c_void};

use crate::record::{self, Record, Records};

/// mimalloc 2 from the shared library that `build.rs` made. Its functions are called through the context, which holds
/// their addresses: one load more than a direct call, and no stub of the dynamic linker.
pub(crate) fn mimalloc2() -> Option<Records> {
    #[derive(Clone, Copy)]
    struct Table {
        malloc: unsafe extern "C" fn(usize) -> *mut c_void,
        calloc: unsafe extern "C" fn(usize, usize) -> *mut c_void,
        realloc: unsafe extern "C" fn(*mut c_void, usize) -> *mut c_void,
        free: unsafe extern "C" fn(*mut c_void),
    }
    unsafe extern "C" fn malloc(ctx: *mut c_void, size: usize) -> *mut c_void {
        // SAFETY: the context is the leaked table below.
        let table = unsafe { &*ctx.cast::<Table>() };
        // SAFETY: any size is allowed.
        unsafe { (table.malloc)(size) }
    }
    unsafe extern "C" fn calloc(ctx: *mut c_void, nelem: usize, elsize: usize) -> *mut c_void {
        // SAFETY: the context is the leaked table below.
        let table = unsafe { &*ctx.cast::<Table>() };
        // SAFETY: any product is allowed.
        unsafe { (table.calloc)(nelem, elsize) }
    }
    unsafe extern "C" fn realloc(ctx: *mut c_void, ptr: *mut c_void, size: usize) -> *mut c_void {
        // SAFETY: the context is the leaked table below.
        let table = unsafe { &*ctx.cast::<Table>() };
        // SAFETY: the caller of the record passes null or a live block of this allocator.
        unsafe { (table.realloc)(ptr, size) }
    }
    unsafe extern "C" fn free(ctx: *mut c_void, ptr: *mut c_void) {
        // SAFETY: the context is the leaked table below.
        let table = unsafe { &*ctx.cast::<Table>() };
        // SAFETY: the caller of the record passes null or a live block, for the last time.
        unsafe { (table.free)(ptr) }
    }

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
    let table = Table {
        // SAFETY: `mi_malloc(size_t) -> void*` in mimalloc.h.
        malloc: unsafe {
            std::mem::transmute::<*mut c_void, unsafe extern "C" fn(usize) -> *mut c_void>(symbol(
                c"mi_malloc",
            )?)
        },
        // SAFETY: `mi_calloc(size_t, size_t) -> void*` in mimalloc.h.
        calloc: unsafe {
            std::mem::transmute::<*mut c_void, unsafe extern "C" fn(usize, usize) -> *mut c_void>(
                symbol(c"mi_calloc")?,
            )
        },
        // SAFETY: `mi_realloc(void*, size_t) -> void*` in mimalloc.h.
        realloc: unsafe {
            std::mem::transmute::<
                *mut c_void,
                unsafe extern "C" fn(*mut c_void, usize) -> *mut c_void,
            >(symbol(c"mi_realloc")?)
        },
        // SAFETY: `mi_free(void*)` in mimalloc.h.
        free: unsafe {
            std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void)>(symbol(
                c"mi_free",
            )?)
        },
    };
    let ctx = std::ptr::from_mut(Box::leak(Box::new(table))).cast();
    Some(record::all(Record { ctx, malloc, calloc, realloc, free }))
}
