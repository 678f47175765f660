//! Owns the identity of the calling thread: its thread pointer, read in one instruction. A thread-local variable of a
//! preloaded library costs a call. Twins: `aarch64.rs`, and `plain.rs` for other systems.

use core::arch::asm;

/// A number that no other thread has while this one lives.
#[inline]
pub(crate) fn id() -> usize {
    let pointer;
    // SAFETY: the first word of a thread's control block is its own address, by the processor's ABI for ELF.
    unsafe { asm!("mov {}, fs:0", out(reg) pointer, options(nostack, readonly, preserves_flags)) };
    pointer
}
