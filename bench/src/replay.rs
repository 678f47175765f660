//! Owns the timed loop: a trace through the functions of one allocator, as CPython calls its allocators.
//!
//! [`malloc_trace::Replay`] does the same for any program; this loop works on mapped memory alone, since the heap of the C
//! library is itself measured here, and what the harness allocates would change how it serves.

use std::ptr::NonNull;

use malloc_api::Malloc;

use crate::allocators::Records;
use crate::trace::Step;

/// Blocks from this size in bytes on get two words written when they are new.
const WRITTEN_BYTES: usize = 16;

/// Replays `steps`. Each new block of 16 bytes or more gets two words written, each freed block is read once.
///
/// Aborts the process where the allocator is out of memory.
///
/// # Safety
///
/// 1. `steps` come from [`crate::trace::map`], in order from an empty table: every slot is inside `slots`, and is freed or
///    resized only while its block is alive.
/// 2. `slots` was filled by the same `records` and by nothing else.
pub unsafe fn replay(steps: &[Step], slots: &mut [Option<NonNull<u8>>], records: &Records) {
    for &step in steps {
        let record = &records[step.domain()];
        // SAFETY: duty 1: the slot is inside the table.
        let slot = unsafe { slots.get_unchecked_mut(step.slot as usize) };
        let size = step.size();
        // By bits, so that it stays branches: an indirect jump for each operation, as a `match` becomes, is guessed worse
        // and would be half of the time of replaying.
        if step.has_block() {
            if step.ends_block() {
                let block = *slot;
                if let Some(block) = block {
                    // SAFETY: the slot's block is alive (duty 1), and no block is smaller than one byte.
                    unsafe { block.read_volatile() };
                }
                // SAFETY: alive (duty 1), of this allocator (duty 2), and the slot is not read again before it is refilled.
                unsafe { record.free(block) };
            } else {
                // SAFETY: the slot's block is alive (duty 1), of this allocator (duty 2), and replaced by the result.
                *slot = present(unsafe { record.realloc(*slot, size) });
            }
        } else if step.is_zeroed() {
            *slot = fresh(record.calloc(1, size), size);
        } else {
            *slot = fresh(record.malloc(size), size);
        }
    }
}

#[inline]
fn fresh(block: Option<NonNull<u8>>, size: usize) -> Option<NonNull<u8>> {
    let block = present(block)?;
    if size >= WRITTEN_BYTES {
        // Two writes: the compiler would carry a pair through the stack.
        let words = block.cast::<usize>();
        // SAFETY: a new block of at least 16 bytes, aligned to 16.
        unsafe { words.write_volatile(size) };
        // SAFETY: inside those 16 bytes.
        let second = unsafe { words.add(1) };
        // SAFETY: as above.
        unsafe { second.write_volatile(1) };
    }
    Some(block)
}

#[inline]
fn present(block: Option<NonNull<u8>>) -> Option<NonNull<u8>> {
    if block.is_none() {
        out_of_memory();
    }
    block
}

#[cold]
fn out_of_memory() -> ! {
    eprintln!("bench: the allocator under test is out of memory");
    std::process::abort()
}
