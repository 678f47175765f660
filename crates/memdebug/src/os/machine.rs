//! Owns what differs between processors: the check of a block's header and guard before it is known to be a block, and the
//! context of a signal.
//!
//! The pointer may be wild, and the size in a header may lead anywhere. The check is a few instructions of assembly, and the
//! fault handler knows its reads by their address: a fault in one of them ends as if the block were not intact. A good pointer
//! pays nothing for this.

#[cfg(all(feature = "std", target_os = "linux", target_arch = "x86_64"))]
pub(crate) use x86_64::*;

#[cfg(all(
    feature = "std",
    target_os = "linux",
    target_arch = "aarch64",
    target_endian = "little"
))]
pub(crate) use aarch64::*;

#[cfg(not(all(
    feature = "std",
    target_os = "linux",
    target_endian = "little",
    any(target_arch = "x86_64", target_arch = "aarch64")
)))]
pub(crate) use plain::*;

/// Makes `call_on_stack` of a processor's instructions. Who walks up the stack from the function that is called finds the caller, as
/// these say where it is.
#[cfg(all(
    feature = "std",
    target_os = "linux",
    target_endian = "little",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
macro_rules! call_on_stack {
    ($($line:literal),+ $(,)?) => {
        core::arch::global_asm!(
            ".pushsection .text.memdebug_stack,\"ax\",@progbits",
            ".p2align 4",
            ".globl memdebug_0_1_call_on_stack",
            ".hidden memdebug_0_1_call_on_stack",
            ".type memdebug_0_1_call_on_stack,@function",
            "memdebug_0_1_call_on_stack:",
            ".cfi_startproc",
            $($line,)+
            ".cfi_endproc",
            ".popsection",
        );

        unsafe extern "C" {
            /// Calls `f(argument)` on the stack that ends at `top`.
            ///
            /// # Safety
            ///
            /// 1. `top` is 16-aligned, and the memory below it is a stack of this call alone, large enough for it.
            /// 2. `f` accepts `argument`, and does not unwind.
            #[link_name = "memdebug_0_1_call_on_stack"]
            pub(crate) fn call_on_stack(
                top: *mut u8,
                f: extern "C" fn(*mut libc::c_void),
                argument: *mut libc::c_void,
            );
        }
    };
}

/// Each check is inlined where it is needed, and entered in a list.
#[cfg(all(feature = "std", target_os = "linux", target_arch = "x86_64"))]
mod x86_64 {
    use core::arch::asm;
    use core::ptr;

    use crate::block::TAIL_WORD;

    /// One inlined check: distances from each field to its first instruction, and to where it ends as not intact. Zero if none.
    #[repr(C)]
    struct Check {
        first: i32,
        not_intact: i32,
    }

    // Made by the linker: the first of all checks, and what follows the last one.
    unsafe extern "C" {
        #[link_name = "__start_memdebug_0_1_checks"]
        static FIRST_CHECK: Check;
        #[link_name = "__stop_memdebug_0_1_checks"]
        static NO_CHECK: Check;
    }

    /// The size of the block at `p` if the second word of its header is `id` and its guard is intact, else `usize::MAX`; so
    /// too where they cannot be read and the fault handler is installed.
    #[inline(always)]
    pub(crate) fn intact_size(p: *const u8, id: u64) -> usize {
        let size;
        // SAFETY: reads 24 bytes and touches nothing else; unreadable ones end in the fault handler.
        unsafe {
            asm!(
                "2:",
                "mov {size}, [{p} - 16]",
                "cmp [{p} - 8], {id}",
                "jne 3f",
                "bswap {size}",
                "cmp [{p} + {size}], {tail}",
                "je 4f",
                "3:",
                "mov {size}, -1",
                "4:",
                ".pushsection memdebug_0_1_checks, \"aR\", @progbits",
                ".balign 4",
                ".long 2b - .",
                ".long 3b - .",
                ".popsection",
                size = out(reg) size,
                p = in(reg) p,
                id = in(reg) id,
                tail = in(reg) TAIL_WORD,
                options(nostack, readonly),
            );
        }
        size
    }

    /// Makes a read of this module that faulted end the check as not intact; `false` if the fault came from elsewhere.
    pub(crate) fn resume(context: &mut libc::ucontext_t) -> bool {
        // SAFETY: adds a check of no instructions, so that the linker makes the list of them in any program.
        unsafe {
            asm!(
                ".pushsection memdebug_0_1_checks, \"aR\", @progbits",
                ".balign 4",
                ".long 0, 0",
                ".popsection",
                options(nomem, nostack, preserves_flags),
            );
        }
        let registers = &mut context.uc_mcontext.gregs;
        let at = registers[libc::REG_RIP as usize] as usize;
        let mut check = &raw const FIRST_CHECK;
        while check != &raw const NO_CHECK {
            // SAFETY: between the first and the last.
            let Check { first, not_intact } = unsafe { &*check };
            let to = |field: &i32| ptr::from_ref(field).addr().wrapping_add_signed(*field as isize);
            let end = to(not_intact);
            if *not_intact != 0 && (to(first)..end).contains(&at) {
                registers[libc::REG_RIP as usize] = end as i64;
                return true;
            }
            check = check.wrapping_add(1);
        }
        false
    }

    /// Whether the access that faulted was a write.
    pub(crate) fn was_write(context: &libc::ucontext_t) -> Option<bool> {
        // Bit 1 of the processor's page-fault error code.
        Some(context.uc_mcontext.gregs[libc::REG_ERR as usize] & 2 != 0)
    }

    /// The stack pointer of what the signal interrupted.
    pub(crate) fn stack_pointer(context: &libc::ucontext_t) -> usize {
        context.uc_mcontext.gregs[libc::REG_RSP as usize] as usize
    }

    /// The instruction that the signal interrupted.
    pub(crate) fn instruction(context: &libc::ucontext_t) -> usize {
        context.uc_mcontext.gregs[libc::REG_RIP as usize] as usize
    }

    /// Registers that a call preserves, by the numbers that unwinders use: rbx, rbp, r12 to r15.
    pub(crate) const PRESERVED: [i32; 6] = [3, 6, 12, 13, 14, 15];

    /// What it had in registers that a call hands over, and that no call preserves.
    pub(crate) fn arguments(context: &libc::ucontext_t) -> impl Iterator<Item = usize> + Clone {
        use libc::{REG_R8, REG_R9, REG_RAX, REG_RCX, REG_RDI, REG_RDX, REG_RSI};
        let registers = [REG_RDI, REG_RSI, REG_RAX, REG_RDX, REG_RCX, REG_R8, REG_R9];
        registers.into_iter().map(|register| context.uc_mcontext.gregs[register as usize] as usize)
    }

    call_on_stack! {
        "push rbp",
        ".cfi_def_cfa_offset 16",
        ".cfi_offset rbp, -16",
        "mov rbp, rsp",
        ".cfi_def_cfa_register rbp",
        "mov rsp, rdi",
        "mov rdi, rdx",
        "call rsi",
        "mov rsp, rbp",
        "pop rbp",
        ".cfi_def_cfa rsp, 8",
        "ret",
    }
}

/// One check for all, whose address is known.
#[cfg(all(
    feature = "std",
    target_os = "linux",
    target_arch = "aarch64",
    target_endian = "little"
))]
mod aarch64 {
    use core::arch::global_asm;

    use crate::block::TAIL_WORD;
    use crate::os::probe;

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

    #[inline]
    pub(crate) fn intact_size(p: *const u8, id: u64) -> usize {
        // SAFETY: reads 24 bytes and touches nothing else; unreadable ones end in the fault handler.
        unsafe { checked_size(p, id) }
    }

    pub(crate) fn resume(context: &mut libc::ucontext_t) -> bool {
        let machine = &mut context.uc_mcontext;
        let start = (checked_size as *const ()).addr() as u64;
        let end = (not_intact as *const ()).addr() as u64;
        if !(start..end).contains(&machine.pc) {
            return false;
        }
        machine.pc = end;
        true
    }

    /// What the kernel adds to a signal's registers: a record each, which begins with what it is and its bytes.
    const RECORDS_BYTES: usize = 4096;
    const SYNDROME_RECORD: u32 = 0x4553_5201;
    const RECORD_HEADER_BYTES: usize = 8;

    /// Whether the access that faulted was a write: as the processor's syndrome says, which an emulator leaves out, or else the
    /// instruction.
    pub(crate) fn was_write(context: &libc::ucontext_t) -> Option<bool> {
        let end = (&raw const context.uc_mcontext).wrapping_add(1);
        let start = end.cast::<[u8; RECORDS_BYTES]>().wrapping_sub(1);
        // SAFETY: the records are the last field of the registers, which has no name.
        let records = unsafe { &*start };
        match syndrome(records) {
            // The write bit, which maintenance of a cache sets too.
            Some(syndrome) => Some(syndrome & 1 << 6 != 0 && syndrome & 1 << 8 == 0),
            None => probe::peek(instruction(context)).map(u32::from_le_bytes).map(is_store),
        }
    }

    /// The processor's word on a fault, its register `ESR_EL1`.
    fn syndrome(mut records: &[u8]) -> Option<u64> {
        loop {
            let (head, body) = records.split_first_chunk::<RECORD_HEADER_BYTES>()?;
            let [kind, bytes] = [&head[..4], &head[4..]]
                .map(|half| u32::from_le_bytes([half[0], half[1], half[2], half[3]]));
            if kind == SYNDROME_RECORD {
                return body.first_chunk().map(|word| u64::from_le_bytes(*word));
            }
            // A record of no bytes is the end.
            let body_bytes = (bytes as usize).checked_sub(RECORD_HEADER_BYTES)?;
            records = body.get(body_bytes..)?;
        }
    }

    /// Whether an instruction stores to memory, by its class in Arm's manual (A64, "Loads and Stores"). One that loads and stores
    /// counts as a load, but for a store-exclusive.
    fn is_store(instruction: u32) -> bool {
        // Bits that tell a class, and what they are where it stores.
        const STORES: [(u32, u32); 10] = [
            // Several structures of vectors, without and with a step of the address.
            (0xbfff_0000, 0x0c00_0000),
            (0xbfe0_0000, 0x0c80_0000),
            // One structure, likewise.
            (0xbfdf_0000, 0x0d00_0000),
            (0xbfc0_0000, 0x0d80_0000),
            // Exclusive and ordered.
            (0x3f40_0000, 0x0800_0000),
            // One register with an unsigned offset, and one of 16 bytes.
            (0x3bc0_0000, 0x3900_0000),
            (0x3fc0_0000, 0x3d80_0000),
            // With any other offset, likewise.
            (0x3bc0_0000, 0x3800_0000),
            (0x3fe0_0000, 0x3c80_0000),
            // Pairs.
            (0x3a40_0000, 0x2800_0000),
        ];
        STORES.iter().any(|(mask, class)| instruction & mask == *class)
    }

    pub(crate) fn stack_pointer(context: &libc::ucontext_t) -> usize {
        context.uc_mcontext.sp as usize
    }

    pub(crate) fn instruction(context: &libc::ucontext_t) -> usize {
        context.uc_mcontext.pc as usize
    }

    /// x19 to x28.
    pub(crate) const PRESERVED: [i32; 10] = [19, 20, 21, 22, 23, 24, 25, 26, 27, 28];

    pub(crate) fn arguments(context: &libc::ucontext_t) -> impl Iterator<Item = usize> + Clone {
        // x0 to x17.
        context.uc_mcontext.regs[..18].iter().map(|&register| register as usize)
    }

    call_on_stack! {
        "stp x29, x30, [sp, #-16]!",
        ".cfi_def_cfa_offset 16",
        ".cfi_offset x29, -16",
        ".cfi_offset x30, -8",
        "mov x29, sp",
        ".cfi_def_cfa_register x29",
        "mov sp, x0",
        "mov x0, x2",
        "blr x1",
        "mov sp, x29",
        ".cfi_def_cfa_register sp",
        "ldp x29, x30, [sp], #16",
        "ret",
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        fn record(kind: u32, bytes: u32, body: &[u8]) -> Vec<u8> {
            [&kind.to_le_bytes(), &bytes.to_le_bytes(), body].concat()
        }

        #[test]
        fn the_syndrome_is_found_behind_other_records() {
            let vectors = record(0x4650_8001, 528, &[0xff; 520]);
            let syndrome_record = record(SYNDROME_RECORD, 16, &0x9200_0047_u64.to_le_bytes());
            let end = record(0, 0, &[]);
            let all = [vectors.clone(), syndrome_record, end.clone()].concat();
            assert_eq!(syndrome(&all), Some(0x9200_0047));
            assert_eq!(syndrome(&all[..540]), None);
            assert_eq!(syndrome(&[vectors.clone(), end].concat()), None);
            assert_eq!(syndrome(&vectors), None);
        }

        #[test]
        fn stores_are_told_from_loads() {
            // str x0, [x1]; strb w0, [x1, #3]; str w0, [x1, x2]; stur x0, [x1, #-1]; stp x0, x1, [x2, #-16]!; stlr x0, [x1];
            // stxr w2, x0, [x1]; str q0, [x1]; str q0, [x1], #16; st1 {v0.16b}, [x1]; st1 {v0.b}[0], [x1].
            for store in [
                0xf900_0020,
                0x3900_0c20,
                0xb822_6820,
                0xf81f_f020,
                0xa9bf_0440,
                0xc89f_fc20,
                0xc802_7c20,
                0x3d80_0020,
                0x3c81_0420,
                0x4c00_7020,
                0x0d00_0020,
            ] {
                assert!(is_store(store), "{store:#x}");
                // The same instruction with its bit of a load.
                assert!(!is_store(store | 1 << 22), "{store:#x}");
            }
        }
    }
}

/// Memory is read as it is: a pointer to nowhere faults.
#[cfg(not(all(
    feature = "std",
    target_os = "linux",
    target_endian = "little",
    any(target_arch = "x86_64", target_arch = "aarch64")
)))]
mod plain {
    use crate::block::{HEADER_BYTES, TAIL_WORD};

    #[inline]
    pub(crate) fn intact_size(p: *const u8, id: u64) -> usize {
        let header = p.wrapping_sub(HEADER_BYTES).cast::<[u64; 2]>();
        // SAFETY: a block's header; what a caller that breaks `free`'s contract passes is beyond this twin.
        let [size, found] = unsafe { header.read_unaligned() };
        if found != id {
            return usize::MAX;
        }
        let size = u64::from_be(size) as usize;
        // SAFETY: a block's guard; as above.
        let tail = unsafe { p.wrapping_add(size).cast::<u64>().read_unaligned() };
        if tail == TAIL_WORD { size } else { usize::MAX }
    }

    #[cfg(feature = "std")]
    pub(crate) fn resume(_: &mut libc::ucontext_t) -> bool {
        false
    }

    #[cfg(feature = "std")]
    pub(crate) fn was_write(_: &libc::ucontext_t) -> Option<bool> {
        None
    }

    #[cfg(feature = "std")]
    pub(crate) fn stack_pointer(_: &libc::ucontext_t) -> usize {
        0
    }

    #[cfg(feature = "std")]
    pub(crate) fn instruction(_: &libc::ucontext_t) -> usize {
        0
    }

    #[cfg(feature = "std")]
    pub(crate) const PRESERVED: [i32; 0] = [];

    #[cfg(feature = "std")]
    pub(crate) fn arguments(_: &libc::ucontext_t) -> impl Iterator<Item = usize> + Clone {
        core::iter::empty()
    }

    /// Calls `f(argument)`, on the stack that there is.
    #[cfg(feature = "std")]
    pub(crate) unsafe fn call_on_stack(
        _top: *mut u8,
        f: extern "C" fn(*mut libc::c_void),
        argument: *mut libc::c_void,
    ) {
        f(argument);
    }
}
