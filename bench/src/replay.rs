//! Owns the timed loop: a trace through the function pointers of one allocator, as CPython calls its allocators.

use std::ffi::c_void;

use crate::record::Records;
use crate::trace::{CALLOC, MALLOC, Op, REALLOC};

/// Blocks from this size in bytes on get two words written when they are new.
const WRITTEN_BYTES: usize = 16;

/// Replays `ops`. Each new block of 16 bytes or more gets two words written, each freed block is read once.
///
/// # Panics
///
/// Aborts the process where the allocator is out of memory.
///
/// # Safety
///
/// 1. `ops` come from [`crate::trace::map`], in order from an empty table: every slot is inside `slots`, and is freed or
///    resized only while its block is alive.
/// 2. `slots` was filled by the same `records` and by nothing else.
/// 3. The records keep the contract of C's malloc family; blocks are readable and writable for their size.
pub unsafe fn replay(ops: &[Op], slots: &mut [*mut u8], records: &Records) {
    for &op in ops {
        let record = &records[op.domain()];
        // SAFETY: duty 1: the slot is inside the table.
        let slot = unsafe { slots.get_unchecked_mut(op.slot as usize) };
        let kind = op.kind();
        if kind == MALLOC {
            // SAFETY: any size is allowed (duty 3).
            let block = unsafe { (record.malloc)(record.ctx, op.size()) };
            *slot = fresh(block, op.size());
        } else if kind == CALLOC {
            // SAFETY: any size is allowed (duty 3).
            let block = unsafe { (record.calloc)(record.ctx, 1, op.size()) };
            *slot = fresh(block, op.size());
        } else if kind == REALLOC {
            // SAFETY: the slot's block is alive (duty 1) and of this allocator (duty 2).
            let block = unsafe { (record.realloc)(record.ctx, (*slot).cast(), op.size()) };
            *slot = present(block);
        } else {
            // SAFETY: the slot's block is alive (duty 1), and no block is smaller than one byte.
            unsafe { (*slot).read_volatile() };
            // SAFETY: alive (duty 1), of this allocator (duty 2), and the slot is not read again before it is refilled.
            unsafe { (record.free)(record.ctx, (*slot).cast()) };
        }
    }
}

#[inline]
fn fresh(block: *mut c_void, size: usize) -> *mut u8 {
    let block = present(block);
    if size >= WRITTEN_BYTES {
        // SAFETY: a new block of at least 16 bytes, aligned to 16.
        unsafe { block.cast::<[usize; 2]>().write_volatile([size, 1]) };
    }
    block
}

#[inline]
fn present(block: *mut c_void) -> *mut u8 {
    if block.is_null() {
        out_of_memory();
    }
    block.cast()
}

#[cold]
fn out_of_memory() -> ! {
    eprintln!("bench: the allocator under test is out of memory");
    std::process::abort()
}
