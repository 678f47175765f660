//! Owns the check of a block's header and guard before it is known to be a block: see `x86_64.rs`, its twin.

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
    "ldp x2, x3, [x0, #-16]",
    "cmp x3, x1",
    "b.ne memdebug_0_1_not_intact",
    "rev x2, x2",
    "ldr x3, [x0, x2]",
    "mov x4, #{tail}",
    "cmp x3, x4",
    "b.ne memdebug_0_1_not_intact",
    "mov x0, x2",
    "ret",
    ".globl memdebug_0_1_not_intact",
    ".hidden memdebug_0_1_not_intact",
    "memdebug_0_1_not_intact:",
    "mov x0, #-1",
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

/// Whether [`thread_pointer`] tells threads apart.
pub(crate) const HAS_THREAD_POINTER: bool = true;

/// The calling thread's thread pointer: no other thread that lives has it.
#[inline(always)]
pub(crate) fn thread_pointer() -> usize {
    let pointer;
    // SAFETY: the register holds the address of the thread's control block; nothing is changed.
    unsafe {
        asm!("mrs {}, tpidr_el0", out(reg) pointer, options(pure, nomem, nostack, preserves_flags))
    };
    pointer
}

/// Makes a read of this module that faulted end the check as not intact; `false` if the fault came from elsewhere.
///
/// # Safety
///
/// 1. `context` is the `ucontext_t` of a signal that is being handled.
pub(crate) unsafe fn resume(context: *mut libc::c_void) -> bool {
    // SAFETY: duty 1, and nothing else refers to it.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    let machine = &mut context.uc_mcontext;
    let start = (checked_size as *const ()).addr() as u64;
    let end = (not_intact as *const ()).addr() as u64;
    if !(start..end).contains(&machine.pc) {
        return false;
    }
    machine.pc = end;
    true
}

/// Whether the access that faulted was a write: the kernel tells only in an optional record, which is not read.
///
/// # Safety
///
/// 1. None.
pub(crate) unsafe fn was_write(_context: *mut libc::c_void) -> Option<bool> {
    None
}

/// The stack pointer of what the signal interrupted.
///
/// # Safety
///
/// 1. `context` is the `ucontext_t` of a signal that is being handled.
pub(crate) unsafe fn stack_pointer(context: *mut libc::c_void) -> usize {
    // SAFETY: duty 1.
    let context = unsafe { &*context.cast::<libc::ucontext_t>() };
    context.uc_mcontext.sp as usize
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
    // SAFETY: duties 1 and 2; x20 survives the call and brings the stack back.
    unsafe {
        asm!(
            "mov x20, sp",
            "mov sp, {top}",
            "blr {f}",
            "mov sp, x20",
            top = in(reg) top,
            f = in(reg) f,
            in("x0") argument,
            out("x20") _,
            clobber_abi("C"),
        );
    }
}
