//! Owns the C face of an allocator: CPython's record of four function pointers and their context, and the adapter that
//! gives any [`Malloc`] this face. Leaves the list of allocators to `rows.rs`.

use std::ffi::c_void;
use std::ptr::NonNull;

use malloc_api::Malloc;

/// One domain's allocator: `PyMemAllocatorEx` of CPython's C API, field by field.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Record {
    /// First argument of each function.
    pub ctx: *mut c_void,
    /// Allocates `size` bytes.
    pub malloc: unsafe extern "C" fn(ctx: *mut c_void, size: usize) -> *mut c_void,
    /// Allocates `nelem * elsize` zeroed bytes.
    pub calloc: unsafe extern "C" fn(ctx: *mut c_void, nelem: usize, elsize: usize) -> *mut c_void,
    /// Resizes a block.
    pub realloc:
        unsafe extern "C" fn(ctx: *mut c_void, ptr: *mut c_void, new_size: usize) -> *mut c_void,
    /// Frees a block.
    pub free: unsafe extern "C" fn(ctx: *mut c_void, ptr: *mut c_void),
}

/// The allocators of the three domains: raw, mem, obj; the fourth repeats obj, so that two bits index without a check.
pub type Records = [Record; 4];

/// The same allocator in each domain.
pub fn all(record: Record) -> Records {
    [record; 4]
}

/// One allocator for raw and another for mem and obj, as in CPython's own table.
pub fn split(raw: Record, objects: Record) -> Records {
    [raw, objects, objects, objects]
}

/// The record of a Rust allocator, which lives until the process ends.
pub fn of<M: Malloc + 'static>(allocator: M) -> Record {
    Record {
        ctx: std::ptr::from_mut(Box::leak(Box::new(allocator))).cast(),
        malloc: malloc::<M>,
        calloc: calloc::<M>,
        realloc: realloc::<M>,
        free: free::<M>,
    }
}

fn to_c(block: Option<NonNull<u8>>) -> *mut c_void {
    block.map_or(std::ptr::null_mut(), |block| block.as_ptr().cast())
}

unsafe extern "C" fn malloc<M: Malloc>(ctx: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: `of` put a leaked `M` behind the context, and nobody makes a `&mut` to it.
    let allocator = unsafe { &*ctx.cast::<M>() };
    to_c(allocator.malloc(size))
}

unsafe extern "C" fn calloc<M: Malloc>(
    ctx: *mut c_void,
    nelem: usize,
    elsize: usize,
) -> *mut c_void {
    // SAFETY: as in `malloc`.
    let allocator = unsafe { &*ctx.cast::<M>() };
    to_c(allocator.calloc(nelem, elsize))
}

unsafe extern "C" fn realloc<M: Malloc>(
    ctx: *mut c_void,
    ptr: *mut c_void,
    new_size: usize,
) -> *mut c_void {
    // SAFETY: as in `malloc`.
    let allocator = unsafe { &*ctx.cast::<M>() };
    // SAFETY: the caller of the record passes null or a live block of it, and drops the old pointer on success.
    to_c(unsafe { allocator.realloc(NonNull::new(ptr.cast()), new_size) })
}

unsafe extern "C" fn free<M: Malloc>(ctx: *mut c_void, ptr: *mut c_void) {
    // SAFETY: as in `malloc`.
    let allocator = unsafe { &*ctx.cast::<M>() };
    // SAFETY: the caller of the record passes null or a live block of it, for the last time.
    unsafe { allocator.free(NonNull::new(ptr.cast())) }
}
