//! Finds a bug that is planted into an allocator: `calloc` that trusts its pages to be zero.

use std::ptr::NonNull;

use malloc_api::{LibcMalloc, Malloc};
use malloc_trace::{Fault, generate, run};

struct Trusting;

// SAFETY: not kept on purpose: memory from `malloc` need not be zero (2).
unsafe impl Malloc for Trusting {
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        LibcMalloc.malloc(size)
    }

    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        LibcMalloc.malloc(nelem.checked_mul(elsize)?)
    }

    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        // SAFETY: the caller's duties 1 and 2 are those of `LibcMalloc`.
        unsafe { LibcMalloc.realloc(ptr, new_size) }
    }

    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        // SAFETY: the caller's duties 1 and 2 are those of `LibcMalloc`.
        unsafe { LibcMalloc.free(ptr) }
    }
}

fn main() {
    let error = run(&generate::random(1, 1000, 500), &Trusting).expect_err("a bug is planted");
    assert!(matches!(error.fault, Fault::NotZeroed { .. }));
    println!("{error}");
}
