//! Owns the check of a block's header and guard before it is known to be a block.
//!
//! The pointer may be wild, and the size in a header may lead anywhere. The check is one small function in assembly, so
//! that the fault handler knows its reads by their address: a fault in one of them ends as if the block were not intact.
//! A good pointer pays a call and a return for this.
//! Twins: `aarch64.rs`, and `plain.rs` for other systems.

use core::arch::{asm, global_asm};

use crate::block::TAIL_WORD;

global_asm!(
    ".pushsection .text.memdebug_load,\"ax\",@progbits",
    ".p2align 4",
    ".globl memdebug_0_1_intact_size",
    ".hidden memdebug_0_1_intact_size",
    ".type memdebug_0_1_intact_size,@function",
    "memdebug_0_1_intact_size:",
    ".cfi_startproc",
    "mov rax, [rdi - 16]",
    "cmp [rdi - 8], rsi",
    "jne memdebug_0_1_not_intact",
    "bswap rax",
    "movabs rcx, {tail}",
    "cmp [rdi + rax], rcx",
    "jne memdebug_0_1_not_intact",
    "ret",
    ".globl memdebug_0_1_not_intact",
    ".hidden memdebug_0_1_not_intact",
    "memdebug_0_1_not_intact:",
    "mov rax, -1",
    "ret",
    ".cfi_endproc",
    ".popsection",
    tail = const TAIL_WORD,
);

unsafe extern "C" {
    #[link_name = "memdebug_0_1_intact_size"]
    fn checked_size(p: *const u8, id: u64) -> usize;
    #[link_name = "memdebug_0_1_not_intact"]
    fn not_intact();
}

/// The size of the block at `p` if the second word of its header is `id` and its guard is intact, else `usize::MAX`; so
/// too where they cannot be read and the fault handler is installed.
#[inline]
pub(crate) fn intact_size(p: *const u8, id: u64) -> usize {
    // SAFETY: reads 24 bytes and touches nothing else; unreadable ones end in the fault handler.
    unsafe { checked_size(p, id) }
}

/// Makes a read of this module that faulted end the check as not intact; `false` if the fault came from elsewhere.
///
/// # Safety
///
/// 1. `context` is the `ucontext_t` of a signal that is being handled.
pub(crate) unsafe fn resume(context: *mut libc::c_void) -> bool {
    // SAFETY: duty 1, and nothing else refers to it.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    let registers = &mut context.uc_mcontext.gregs;
    let start = (checked_size as *const ()).addr();
    let end = (not_intact as *const ()).addr();
    let at = registers[libc::REG_RIP as usize] as usize;
    if !(start..end).contains(&at) {
        return false;
    }
    registers[libc::REG_RIP as usize] = end as i64;
    true
}

/// Whether the access that faulted was a write.
///
/// # Safety
///
/// 1. `context` is the `ucontext_t` of a SIGSEGV that the kernel raised.
pub(crate) unsafe fn was_write(context: *mut libc::c_void) -> Option<bool> {
    // SAFETY: duty 1.
    let context = unsafe { &*context.cast::<libc::ucontext_t>() };
    // Bit 1 of the processor's page-fault error code.
    Some(context.uc_mcontext.gregs[libc::REG_ERR as usize] & 2 != 0)
}

/// The stack pointer of what the signal interrupted.
///
/// # Safety
///
/// 1. `context` is the `ucontext_t` of a signal that is being handled.
pub(crate) unsafe fn stack_pointer(context: *mut libc::c_void) -> usize {
    // SAFETY: duty 1.
    let context = unsafe { &*context.cast::<libc::ucontext_t>() };
    context.uc_mcontext.gregs[libc::REG_RSP as usize] as usize
}

/// Calls `f(argument)` on the stack that ends at `top`.
///
/// # Safety
///
/// 1. `top` is 16-aligned, and the memory below it is a stack of this call alone, large enough for it.
/// 2. `f` accepts `argument`, and does not unwind.
pub(crate) unsafe fn call_on_stack(
    top: *mut u8,
    f: extern "C" fn(*mut libc::c_void),
    argument: *mut libc::c_void,
) {
    // SAFETY: duties 1 and 2; r12 survives the call and brings the stack back.
    unsafe {
        asm!(
            "mov r12, rsp",
            "mov rsp, {top}",
            "call {f}",
            "mov rsp, r12",
            top = in(reg) top,
            f = in(reg) f,
            in("rdi") argument,
            out("r12") _,
            clobber_abi("C"),
        );
    }
}
