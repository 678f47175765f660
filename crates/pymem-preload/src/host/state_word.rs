//! Owns finding the word in which the host keeps its current thread state: the one that its function for it reads.
//!
//! The function is a load and a return. Its few instructions are followed, one by one, as the processor would; what the
//! register with the result holds at the return tells where the word is. An instruction that is not in the list gives no
//! word, and every call asks the function. Leaves what the word means to `gil.rs`.

use core::ffi::c_void;
use core::slice;

use memdebug::{ThreadWord, thread_pointer};

use crate::host::capi::PyThreadState;

/// The host's function for a thread state.
pub(crate) type StateFunction = unsafe extern "C" fn() -> *mut PyThreadState;

/// Where a host keeps its current thread state.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Keeps {
    /// In one word for all threads.
    OfProcess,
    /// In a word of each thread.
    OfThread,
}

/// Whether the instructions below are this processor's.
const IS_X86_64: bool = cfg!(target_arch = "x86_64");

/// Bytes of the longest function that compilers make of a load, with what protects and frames it.
const LONGEST: usize = 48;

/// What one instruction does to the result.
#[derive(Clone, Copy, Debug)]
enum Effect {
    /// Nothing: it keeps the stack, or marks where indirect calls may arrive.
    Nothing,
    /// Loads the word at a distance from the next instruction.
    LoadNear,
    /// Loads a word of the thread, at a distance from the thread pointer.
    LoadOwn,
    /// Loads the word of the thread whose distance is the result.
    LoadOwnByResult,
    /// Loads the word at a distance from the result.
    LoadByResult,
    /// Takes the address at a distance from the next instruction as the argument of a call.
    Argument,
    /// Calls `__tls_get_addr`, which nothing else in such a function could be.
    Call,
    Return,
}

/// In an instruction, four bytes of a distance. Any other element is a byte of the instruction.
const N: u16 = 0x100;
/// One byte of a distance.
const B: u16 = 0x101;

/// The instructions that are followed. Prefixes without an effect, which the linker counts on, belong to them.
const INSTRUCTIONS: &[(&[u16], Effect)] = &[
    (&[0xf3, 0x0f, 0x1e, 0xfa], Effect::Nothing), // endbr64
    (&[0x55], Effect::Nothing),                   // push rbp
    (&[0x48, 0x89, 0xe5], Effect::Nothing),       // mov rbp, rsp
    (&[0x5d], Effect::Nothing),                   // pop rbp
    (&[0x48, 0x83, 0xec, B], Effect::Nothing),    // sub rsp, n
    (&[0x48, 0x83, 0xc4, B], Effect::Nothing),    // add rsp, n
    (&[0x48, 0x8b, 0x05, N], Effect::LoadNear),   // mov rax, [rip + n]
    (&[0x64, 0x48, 0x8b, 0x04, 0x25, N], Effect::LoadOwn), // mov rax, fs:[n]
    (&[0x64, 0x48, 0x8b, 0x00], Effect::LoadOwnByResult), // mov rax, fs:[rax]
    (&[0x48, 0x8b, 0x00], Effect::LoadByResult),  // mov rax, [rax]
    (&[0x48, 0x8b, 0x40, B], Effect::LoadByResult), // mov rax, [rax + n]
    (&[0x48, 0x8b, 0x80, N], Effect::LoadByResult), // mov rax, [rax + n]
    (&[0x66, 0x48, 0x8d, 0x3d, N], Effect::Argument), // lea rdi, [rip + n]
    (&[0x48, 0x8d, 0x3d, N], Effect::Argument),   // lea rdi, [rip + n]
    (&[0x66, 0x66, 0x48, 0xe8, N], Effect::Call), // call n
    (&[0xe8, N], Effect::Call),                   // call n
    (&[0x66, 0x48, 0xff, 0x15, N], Effect::Call), // call [rip + n]
    (&[0xff, 0x15, N], Effect::Call),             // call [rip + n]
    (&[0xc3], Effect::Return),                    // ret
];

unsafe extern "C" {
    fn __tls_get_addr(index: *const c_void) -> *mut c_void;
}

/// What the register with the result holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Nothing,
    /// The word at this address.
    Word(usize),
    /// The address at this distance from the thread pointer.
    OwnAddress(isize),
    /// The word at this distance from the thread pointer.
    OwnWord(isize),
}

/// The distance in the bytes that `pattern` begins with in `code`, 0 without one, and the bytes after the instruction.
fn matched<'a>(code: &'a [u8], pattern: &[u16]) -> Option<(isize, &'a [u8])> {
    let (mut distance, mut rest) = (0, code);
    for element in pattern {
        match *element {
            N => {
                let (number, others) = rest.split_first_chunk()?;
                distance = i32::from_le_bytes(*number) as isize;
                rest = others;
            }
            B => {
                let (number, others) = rest.split_first_chunk()?;
                distance = i8::from_le_bytes(*number) as isize;
                rest = others;
            }
            byte => rest = rest.strip_prefix(&[byte as u8])?,
        }
    }
    Some((distance, rest))
}

/// Follows the instructions of `code` up to its return; `None` where one of them is not in the list or makes no sense.
///
/// # Safety
///
/// 1. `code` lies where it runs, and calls nothing but `__tls_get_addr`.
/// 2. The words that it reads can be read.
unsafe fn follow(mut code: &[u8]) -> Option<Held> {
    let mut result = Held::Nothing;
    let mut argument = None;
    loop {
        let found = INSTRUCTIONS.iter().find_map(|(pattern, effect)| {
            matched(code, pattern).map(|(distance, rest)| (*effect, distance, rest))
        });
        let (effect, distance, rest) = found?;
        let target = rest.as_ptr().addr().wrapping_add_signed(distance);
        result = match (effect, result) {
            (Effect::Nothing, _) => result,
            (Effect::LoadNear, _) => Held::Word(target),
            (Effect::LoadOwn, _) => Held::OwnWord(distance),
            (Effect::LoadOwnByResult, Held::Word(address)) => {
                // SAFETY: 1: by duty 2.
                Held::OwnWord(unsafe { read(address) } as isize)
            }
            (Effect::LoadByResult, Held::OwnAddress(offset)) => Held::OwnWord(offset + distance),
            (Effect::LoadByResult, Held::Word(address)) => {
                // SAFETY: 1: by duty 2.
                Held::Word(unsafe { read(address) }.wrapping_add_signed(distance))
            }
            (Effect::Argument, _) => {
                argument = Some(target);
                result
            }
            (Effect::Call, _) => {
                let index = core::ptr::with_exposed_provenance(argument.take()?);
                // SAFETY: what the function passes (duty 1).
                let word = unsafe { __tls_get_addr(index) };
                Held::OwnAddress(word.addr().wrapping_sub(thread_pointer()) as isize)
            }
            (Effect::Return, _) => return Some(result),
            (Effect::LoadOwnByResult | Effect::LoadByResult, _) => return None,
        };
        code = rest;
    }
}

/// The word that `current` reads, if its instructions tell.
///
/// # Safety
///
/// 1. `current` gives the current thread state, and `keeps` says where the host keeps it.
/// 2. The host was loaded with the program, so that words of its threads are at the same distance in each.
pub(crate) unsafe fn find(current: StateFunction, keeps: Keeps) -> Option<ThreadWord> {
    if !IS_X86_64 {
        return None;
    }
    let start: *const u8 = (current as *const ()).cast();
    // SAFETY: a function and what the linker puts after it: the end of a program's code is never so close.
    let code = unsafe { slice::from_raw_parts(start, LONGEST) };
    // SAFETY: 1 and 2: the function itself, which gives a thread state (duty 1).
    match (keeps, unsafe { follow(code) }?) {
        (Keeps::OfProcess, Held::Word(word)) => {
            let word = core::ptr::with_exposed_provenance(word);
            // SAFETY: 1: the function reads it. 2: duty 1, as `gil.rs` explains.
            Some(unsafe { ThreadWord::of_process(word) })
        }
        // SAFETY: 1: the function reads it, and by duty 2 it is where it is in every thread. 2: duty 1.
        (Keeps::OfThread, Held::OwnWord(offset)) => Some(unsafe { ThreadWord::of_thread(offset) }),
        (
            Keeps::OfProcess | Keeps::OfThread,
            Held::Nothing | Held::Word(_) | Held::OwnAddress(_) | Held::OwnWord(_),
        ) => None,
    }
}

/// # Safety
///
/// 1. There is a word at `address`.
unsafe fn read(address: usize) -> usize {
    let word: *const usize = core::ptr::with_exposed_provenance(address);
    // SAFETY: duty 1; the linker puts no bound on where such a word is.
    unsafe { word.read_unaligned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(code: &[u8]) -> Option<Held> {
        // SAFETY: 1: none of these calls. 2: their distances are within the code.
        unsafe { follow(code) }
    }

    #[test]
    fn words_of_the_process() {
        let near = [0x48, 0x8b, 0x05, 0x10, 0, 0, 0, 0xc3];
        assert_eq!(result(&near), Some(Held::Word(near.as_ptr().addr() + 7 + 16)));
        let framed = [
            0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0x48, 0x89, 0xe5, 0x48, 0x8b, 0x05, 1, 0, 0, 0, 0x5d,
            0xc3,
        ];
        assert_eq!(result(&framed), Some(Held::Word(framed.as_ptr().addr() + 15 + 1)));
        // The word after the return: an address, to which the second distance is added.
        let mut far = [
            0x48, 0x8b, 0x05, 0x08, 0, 0, 0, 0x48, 0x8b, 0x80, 0xf0, 0xff, 0xff, 0xff, 0xc3, 0, 0,
            0, 0, 0, 0, 0, 0,
        ];
        far[15..].copy_from_slice(&0x1000_usize.to_ne_bytes());
        assert_eq!(result(&far), Some(Held::Word(0x1000 - 16)));
    }

    #[test]
    fn words_of_a_thread() {
        let own = [0x64, 0x48, 0x8b, 0x04, 0x25, 0xe8, 0xff, 0xff, 0xff, 0xc3];
        assert_eq!(result(&own), Some(Held::OwnWord(-24)));
    }

    #[test]
    fn anything_else_gives_no_word() {
        let other = [0x48, 0x8b, 0x05, 0x10, 0, 0, 0, 0x48, 0x85, 0xc0, 0xc3];
        assert_eq!(result(&other), None, "test rax, rax");
        assert_eq!(result(&[0x48, 0x8b, 0x05, 0x10, 0, 0]), None, "cut short");
        assert_eq!(result(&[0x48, 0x8b, 0x00, 0xc3]), None, "nothing to load by");
        assert_eq!(result(&[0xe8, 0, 0, 0, 0, 0xc3]), None, "a call without an argument");
    }
}
