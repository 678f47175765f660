//! Owns the reads of a block's header and guard before it is known to be a block: see `x86_64.rs`, its twin.

use core::arch::{asm, global_asm};

global_asm!(
    ".pushsection .text.memdebug_load,\"ax\",@progbits",
    ".p2align 4",
    ".globl memdebug_0_1_load_pair",
    ".hidden memdebug_0_1_load_pair",
    ".type memdebug_0_1_load_pair,@function",
    "memdebug_0_1_load_pair:",
    ".cfi_startproc",
    "ldp x0, x1, [x0]",
    "ret",
    ".cfi_endproc",
    ".globl memdebug_0_1_load_word",
    ".hidden memdebug_0_1_load_word",
    ".type memdebug_0_1_load_word,@function",
    "memdebug_0_1_load_word:",
    ".cfi_startproc",
    "ldr x0, [x0]",
    ".globl memdebug_0_1_load_end",
    ".hidden memdebug_0_1_load_end",
    "memdebug_0_1_load_end:",
    "ret",
    ".cfi_endproc",
    ".popsection",
);

#[repr(C)]
struct Pair(u64, u64);

unsafe extern "C" {
    #[link_name = "memdebug_0_1_load_pair"]
    fn load_pair(address: *const u8) -> Pair;
    #[link_name = "memdebug_0_1_load_word"]
    fn load_word(address: *const u8) -> u64;
    #[link_name = "memdebug_0_1_load_end"]
    fn load_end();
}

/// The two words at `address`; zeros where it cannot be read and the fault handler is installed.
#[inline]
pub(crate) fn header(address: *const u8) -> [u64; 2] {
    // SAFETY: reads 16 bytes and touches nothing else; unreadable ones end in the fault handler.
    let Pair(first, second) = unsafe { load_pair(address) };
    [first, second]
}

/// The word at `address`; zero where it cannot be read and the fault handler is installed.
#[inline]
pub(crate) fn word(address: *const u8) -> u64 {
    // SAFETY: reads 8 bytes and touches nothing else; unreadable ones end in the fault handler.
    unsafe { load_word(address) }
}

/// Makes a read of this module that faulted return zero; `false` if the fault came from elsewhere.
///
/// # Safety
///
/// 1. `context` is the `ucontext_t` of a signal that is being handled.
pub(crate) unsafe fn resume(context: *mut libc::c_void) -> bool {
    // SAFETY: duty 1, and nothing else refers to it.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    let machine = &mut context.uc_mcontext;
    let start = (load_pair as *const ()).addr() as u64;
    let end = (load_end as *const ()).addr() as u64;
    if !(start..end).contains(&machine.pc) {
        return false;
    }
    machine.regs[0] = 0;
    machine.regs[1] = 0;
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
