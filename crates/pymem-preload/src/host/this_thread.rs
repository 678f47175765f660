//! Owns the identity of the calling thread: its thread pointer, read in one instruction. A thread-local variable of a
//! preloaded library costs a call.

/// A number that no other thread has while this one lives.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) fn id() -> usize {
    let pointer;
    // SAFETY: the first word of a thread's control block is its own address, by the processor's ABI for ELF.
    unsafe {
        core::arch::asm!("mov {}, fs:0", out(reg) pointer, options(nostack, readonly, preserves_flags));
    }
    pointer
}

/// A number that no other thread has while this one lives.
#[cfg(target_arch = "aarch64")]
#[inline]
pub(crate) fn id() -> usize {
    let pointer;
    // SAFETY: the register holds the address of the thread's control block; nothing is changed.
    unsafe {
        core::arch::asm!("mrs {}, tpidr_el0", out(reg) pointer, options(nomem, nostack, preserves_flags));
    }
    pointer
}

/// A number that no other thread has while this one lives: the address of a variable of its own.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(crate) fn id() -> usize {
    thread_local! {
        static ANCHOR: u8 = const { 0 };
    }
    ANCHOR.with(|anchor| core::ptr::from_ref(anchor).addr())
}
