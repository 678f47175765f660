//! The life of a program that starts an interpreter: before, meanwhile and after. The functions of the interpreter are stand-ins,
//! which know the blocks that they have handed out as debug hooks do.

use std::alloc::{GlobalAlloc as _, Layout, alloc, alloc_zeroed, dealloc, realloc};
use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use pymem_raw_alloc::PyMemRaw;

#[global_allocator]
static GLOBAL: PyMemRaw = PyMemRaw;

static STARTED: AtomicBool = AtomicBool::new(false);
static LIVE: AtomicUsize = AtomicUsize::new(0);

/// In front of every block of the stand-ins, with the block's size.
const SEAL: usize = 0x5ea1;

/// Where a block begins in what the C library has given: blocks of 8 bytes or fewer are aligned to 8 bytes alone.
const fn offset(size: usize) -> usize {
    if size > 8 { 16 } else { 24 }
}

unsafe extern "C" {
    safe fn calloc(nelem: usize, elsize: usize) -> *mut c_void;
    fn free(block: *mut c_void);
}

#[unsafe(no_mangle)]
extern "C" fn Py_IsInitialized() -> c_int {
    STARTED.load(Relaxed).into()
}

#[unsafe(no_mangle)]
extern "C" fn PyMem_RawMalloc(size: usize) -> *mut c_void {
    PyMem_RawCalloc(1, size)
}

#[unsafe(no_mangle)]
extern "C" fn PyMem_RawCalloc(nelem: usize, elsize: usize) -> *mut c_void {
    let size = nelem * elsize;
    let block = calloc(1, offset(size) + size).wrapping_byte_add(offset(size));
    LIVE.fetch_add(1, Relaxed);
    // SAFETY: there are 16 bytes or more in front, aligned to 8.
    unsafe { block.cast::<[usize; 2]>().wrapping_sub(1).write([SEAL, size]) };
    block
}

/// # Safety
///
/// 1. As `realloc`.
#[unsafe(no_mangle)]
unsafe extern "C" fn PyMem_RawRealloc(ptr: *mut c_void, new_size: usize) -> *mut c_void {
    let new = PyMem_RawMalloc(new_size);
    // SAFETY: what is in front of a block of the stand-ins (duty 1).
    let [_, size] = unsafe { ptr.cast::<[usize; 2]>().wrapping_sub(1).read() };
    // SAFETY: both have so many bytes, and the new block is another one.
    unsafe { new.copy_from_nonoverlapping(ptr, size.min(new_size)) };
    // SAFETY: 1: given up (duty 1).
    unsafe { PyMem_RawFree(ptr) };
    new
}

/// # Safety
///
/// 1. As `free`.
#[unsafe(no_mangle)]
unsafe extern "C" fn PyMem_RawFree(ptr: *mut c_void) {
    // SAFETY: what is in front of a block of the stand-ins, or of one that must not be here.
    let [seal, size] = unsafe { ptr.cast::<[usize; 2]>().wrapping_sub(1).read() };
    if seal != SEAL {
        std::process::abort();
    }
    LIVE.fetch_sub(1, Relaxed);
    // SAFETY: from `calloc`, and given up (duty 1).
    unsafe { free(ptr.wrapping_byte_sub(offset(size))) };
}

fn layout(size: usize, align: usize) -> Layout {
    Layout::from_size_align(size, align).expect("a layout")
}

/// The harness has allocated before this test begins, and frees afterwards: an early block in the wrong hands ends the program.
#[test]
fn every_block_goes_back_to_where_it_came_from() {
    assert_eq!(LIVE.load(Relaxed), 0, "nothing comes from an interpreter that has not started");
    let (early, page) = (layout(1_000, 8), layout(3_000, 4096));
    // SAFETY: of a size that is not 0.
    let blocks = [early, page, early, early].map(|layout| unsafe { alloc_zeroed(layout) });
    assert!(blocks[1].addr() % 4096 == 0 && blocks.iter().all(|block| block.addr() % 8 == 0));
    // SAFETY: `early`'s bytes are zeros.
    assert!(unsafe { std::slice::from_raw_parts(blocks[0], 1_000) }.iter().all(|byte| *byte == 0));
    for (number, block) in (1..).zip(blocks) {
        // SAFETY: of 1,000 bytes and more.
        unsafe { block.write_bytes(number, 1_000) };
    }
    assert_eq!(LIVE.load(Relaxed), 0);
    // SAFETY: larger than the room, and not 0.
    let large = unsafe { alloc(layout(2 << 20, 16)) };
    assert!(!large.is_null());
    assert_eq!(LIVE.load(Relaxed), 1, "what does not fit comes from the interpreter even so");

    STARTED.store(true, Relaxed);
    // SAFETY: live, with its layout; not used again.
    let moved = unsafe { realloc(blocks[0], early, 5_000) };
    // SAFETY: the first 1,000 bytes are those of the early block.
    assert!(unsafe { std::slice::from_raw_parts(moved, 1_000) }.iter().all(|byte| *byte == 1));
    assert_eq!(LIVE.load(Relaxed), 2);
    // SAFETY: live, with its layout; not used again.
    let moved = unsafe { realloc(moved, layout(5_000, 8), 9_000) };
    let aligned = [(1, 1), (8, 8), (4, 16), (17, 16), (100, 64), (1, 4096)].map(|(size, align)| {
        // SAFETY: of a size that is not 0.
        let block = unsafe { alloc(layout(size, align)) };
        assert_eq!(block.addr() % align, 0);
        (block, layout(size, align))
    });
    assert_eq!(LIVE.load(Relaxed), 8);

    STARTED.store(false, Relaxed);
    let all = [(blocks[1], page), (blocks[2], early), (moved, layout(9_000, 8))];
    let all = all.into_iter().chain(aligned).chain([(large, layout(2 << 20, 16))]);
    for (block, layout) in all {
        // SAFETY: live, with its layout; not used again.
        unsafe { dealloc(block, layout) };
    }
    assert_eq!(LIVE.load(Relaxed), 0, "the interpreter's own, after its end");
    // SAFETY: of a size that is not 0.
    let late = unsafe { GLOBAL.alloc(early) };
    assert_eq!(LIVE.load(Relaxed), 1, "and still the interpreter's");
    // SAFETY: live, with its layout; not used again.
    unsafe { GLOBAL.dealloc(late, early) };
    assert!(!ptr::eq(blocks[3], late));
}
