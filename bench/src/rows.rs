//! Owns the list of allocators that can be measured: their names, and how each comes to its [`Records`].
//! Leaves the interpreter's own allocators to `host.rs`.

use std::ffi::{CStr, CString, c_void};

use crate::host;
use crate::record::{self, Record, Records};

/// An allocator that can be measured by name.
#[derive(Debug)]
pub struct Row {
    /// Name on the command line and in every table.
    pub name: &'static str,
    /// What it is, in one phrase.
    pub about: &'static str,
    /// Makes a fresh instance where the allocator has instances; `None` where it is not available here.
    pub open: fn() -> Option<Records>,
}

/// Every row, in the order in which results are shown; the first is what the ratios are relative to.
pub const ROWS: &[Row] = &[
    Row {
        name: "cpython",
        about: "CPython's own: pymalloc for mem and obj, libc for raw",
        open: host::records,
    },
    Row { name: "pymalloc", about: "pymalloc-core for mem and obj, libc for raw", open: pymalloc },
    Row { name: "pymalloc-all", about: "pymalloc-core for all three domains", open: pymalloc_all },
    Row { name: "mimalloc3", about: "mimalloc 3, plain mi_malloc", open: mimalloc3 },
    Row { name: "mimalloc2", about: "mimalloc 2, plain mi_malloc", open: mimalloc2 },
    Row { name: "jemalloc", about: "jemalloc 5", open: peers::jemalloc },
    Row { name: "snmalloc", about: "snmalloc", open: peers::snmalloc },
    Row { name: "libc", about: "the C library's malloc", open: libc_malloc },
    Row { name: "null", about: "one fixed pointer: the cost of replaying", open: null },
];

/// The row of this name.
pub fn find(name: &str) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.name == name)
}

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

fn libc_record() -> Record {
    plain!(libc::malloc, libc::calloc, libc::realloc, libc::free)
}

fn libc_malloc() -> Option<Records> {
    Some(record::all(libc_record()))
}

fn pymalloc() -> Option<Records> {
    None
}

fn pymalloc_all() -> Option<Records> {
    None
}

fn mimalloc3() -> Option<Records> {
    use libmimalloc_sys::{mi_calloc, mi_free, mi_malloc, mi_realloc};
    Some(record::all(plain!(mi_malloc, mi_calloc, mi_realloc, mi_free)))
}

/// mimalloc 2 from the shared library that `build.rs` made. Its functions are called through the context, which holds
/// their addresses: one load more than a direct call, and no stub of the dynamic linker.
fn mimalloc2() -> Option<Records> {
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

/// The memory that `null` hands out: what a replay writes and reads of a block fits.
#[repr(align(16))]
struct Scratch([u8; 64]);

fn null() -> Option<Records> {
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
mod peers {
    use super::{Records, c_void, record};

    pub(super) fn jemalloc() -> Option<Records> {
        use tikv_jemalloc_sys as je;
        Some(record::all(plain!(je::malloc, je::calloc, je::realloc, je::free)))
    }

    pub(super) fn snmalloc() -> Option<Records> {
        use snmalloc_sys::{sn_calloc, sn_free, sn_malloc, sn_realloc};
        Some(record::all(plain!(sn_malloc, sn_calloc, sn_realloc, sn_free)))
    }
}

/// A build without peers has none of them.
#[cfg(not(feature = "peers"))]
mod peers {
    use super::Records;

    pub(super) fn jemalloc() -> Option<Records> {
        None
    }

    pub(super) fn snmalloc() -> Option<Records> {
        None
    }
}
