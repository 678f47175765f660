//! Owns the reads of a block's header and guard before it is known to be a block.
//!
//! The pointer may be wild, and the size in a header may lead anywhere. The reads are two tiny functions in assembly,
//! so that the fault handler knows their instructions by address: a fault in one of them ends as if zero had been read,
//! which is no intact header and no intact guard. A good pointer pays a call and a return for this.
//! Twins: `aarch64.rs`, and `plain.rs` for other systems.

use core::arch::{asm, global_asm};

global_asm!(
    ".pushsection .text.memdebug_load,\"ax\",@progbits",
    ".p2align 4",
    ".globl memdebug_0_1_load_pair",
    ".hidden memdebug_0_1_load_pair",
    ".type memdebug_0_1_load_pair,@function",
    "memdebug_0_1_load_pair:",
    ".cfi_startproc",
    "mov rax, [rdi]",
    "mov rdx, [rdi + 8]",
    "ret",
    ".cfi_endproc",
    ".globl memdebug_0_1_load_word",
    ".hidden memdebug_0_1_load_word",
    ".type memdebug_0_1_load_word,@function",
    "memdebug_0_1_load_word:",
    ".cfi_startproc",
    "mov rax, [rdi]",
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
    let registers = &mut context.uc_mcontext.gregs;
    let start = (load_pair as *const ()).addr();
    let end = (load_end as *const ()).addr();
    let at = registers[libc::REG_RIP as usize] as usize;
    if !(start..end).contains(&at) {
        return false;
    }
    registers[libc::REG_RAX as usize] = 0;
    registers[libc::REG_RDX as usize] = 0;
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
