//! Owns the identity of the calling thread: its thread pointer. See `x86_64.rs`, its twin.

use core::arch::asm;

/// A number that no other thread has while this one lives.
#[inline]
pub(crate) fn id() -> usize {
    let pointer;
    // SAFETY: the register holds the address of the thread's control block; nothing is changed.
    unsafe {
        asm!("mrs {}, tpidr_el0", out(reg) pointer, options(nomem, nostack, preserves_flags))
    };
    pointer
}
