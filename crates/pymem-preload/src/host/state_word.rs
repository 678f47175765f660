//! Owns finding the word in which the host keeps its current thread state: the one that its function for it reads.
//!
//! The function is a load and a return, which compilers write in few ways. Its instructions are compared with these; from
//! the one that fits follows where the word is. Anything else gives no word, and every call asks the function.

use core::ffi::c_void;
use core::slice;

use memdebug::ThreadWord;

use crate::host::capi::PyThreadState;
use crate::host::this_thread;

/// The host's function for its current thread state.
pub(crate) type Current = unsafe extern "C" fn() -> *mut PyThreadState;

/// Where a host keeps its current thread state.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Keeps {
    /// In one word for all threads.
    OfProcess,
    /// In a word of each thread.
    OfThread,
}

/// Whether the patterns below are this processor's.
const HAS_PATTERNS: bool = cfg!(target_arch = "x86_64");

/// In a pattern, four bytes of a distance or an address. Any other element is a byte of an instruction.
const N: u16 = 0x100;

/// `endbr64`, before the first instruction where the compiler protects indirect calls.
const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];

/// Bytes of the longest function below, with `endbr64`.
const LONGEST: usize = 40;

/// `mov rax, [rip + n]; ret`: the word is there.
const NEAR: &[u16] = &[0x48, 0x8b, 0x05, N, 0xc3];
/// `mov rax, [rip + n]; mov rax, [rax + n]; ret`: the address of a structure, and the word in it.
const FAR: &[u16] = &[0x48, 0x8b, 0x05, N, 0x48, 0x8b, 0x80, N, 0xc3];
/// `mov rax, fs:[n]; ret`: of each thread, in a program.
const LOCAL: &[u16] = &[0x64, 0x48, 0x8b, 0x04, 0x25, N, 0xc3];
/// `mov rax, [rip + n]; mov rax, fs:[rax]; ret`: of each thread, its distance from the thread pointer in memory.
const INITIAL: &[u16] = &[0x48, 0x8b, 0x05, N, 0x64, 0x48, 0x8b, 0x00, 0xc3];
/// `lea rdi, [rip + n]; call __tls_get_addr; mov rax, [rax]; ret` between two moves of the stack pointer: of each thread, in
/// a library.
const DYNAMIC: &[u16] = &[
    0x48, 0x83, 0xec, 0x08, 0x66, 0x48, 0x8d, 0x3d, N, 0x66, 0x66, 0x48, 0xe8, N, 0x48, 0x8b, 0x00,
    0x48, 0x83, 0xc4, 0x08, 0xc3,
];
/// The same with the call through a pointer.
const DYNAMIC_NO_PLT: &[u16] = &[
    0x48, 0x83, 0xec, 0x08, 0x66, 0x48, 0x8d, 0x3d, N, 0x66, 0x48, 0xff, 0x15, N, 0x48, 0x8b, 0x00,
    0x48, 0x83, 0xc4, 0x08, 0xc3,
];

unsafe extern "C" {
    fn __tls_get_addr(index: *const c_void) -> *mut c_void;
}

/// A number in the instructions: its value, and the address that follows it, from which distances count.
#[derive(Clone, Copy, Default)]
struct Number {
    value: isize,
    after: usize,
}

impl Number {
    fn target(self) -> usize {
        self.after.wrapping_add_signed(self.value)
    }
}

/// The numbers in `code`, if it begins with `pattern`.
fn numbers(code: &[u8], pattern: &[u16]) -> Option<[Number; 2]> {
    let mut found = [Number::default(); 2];
    let mut places = found.iter_mut();
    let mut rest = code;
    for byte in pattern {
        if *byte == N {
            let (number, others) = rest.split_first_chunk()?;
            let after = others.as_ptr().addr();
            *places.next()? = Number { value: i32::from_le_bytes(*number) as isize, after };
            rest = others;
        } else {
            let (first, others) = rest.split_first()?;
            if u16::from(*first) != *byte {
                return None;
            }
            rest = others;
        }
    }
    Some(found)
}

/// The word that `current` reads, if its instructions tell.
///
/// # Safety
///
/// 1. `current` gives the current thread state, and `keeps` says where the host keeps it.
/// 2. The host was loaded with the program, so that words of its threads are at the same distance in each.
pub(crate) unsafe fn find(current: Current, keeps: Keeps) -> Option<ThreadWord> {
    if !HAS_PATTERNS {
        return None;
    }
    let start: *const u8 = (current as *const ()).cast();
    // SAFETY: a function and what the linker puts after it: the end of a program's code is never so close.
    let code = unsafe { slice::from_raw_parts(start, LONGEST) };
    let code = code.strip_prefix(&ENDBR64).unwrap_or(code);
    match keeps {
        Keeps::OfProcess => {
            let word = numbers(code, NEAR).map(|[word, _]| word.target()).or_else(|| {
                let [structure, offset] = numbers(code, FAR)?;
                // SAFETY: the function reads this very word.
                Some(unsafe { read(structure.target()) }.wrapping_add_signed(offset.value))
            })?;
            let word = core::ptr::with_exposed_provenance(word);
            // SAFETY: 1: the function reads it. 2: duty 1, as `gil.rs` explains.
            Some(unsafe { ThreadWord::of_process(word) })
        }
        Keeps::OfThread => {
            let offset = numbers(code, LOCAL)
                .map(|[offset, _]| offset.value)
                .or_else(|| {
                    let [offset, _] = numbers(code, INITIAL)?;
                    // SAFETY: the function reads this very word.
                    Some(unsafe { read(offset.target()) } as isize)
                })
                .or_else(|| {
                    let [index, _] =
                        numbers(code, DYNAMIC).or_else(|| numbers(code, DYNAMIC_NO_PLT))?;
                    let index = core::ptr::with_exposed_provenance(index.target());
                    // SAFETY: what the function passes.
                    let word = unsafe { __tls_get_addr(index) };
                    Some(word.addr().wrapping_sub(this_thread::id()) as isize)
                })?;
            // SAFETY: 1: the function reads it, and by duty 2 it is where it is in every thread. 2: duty 1.
            Some(unsafe { ThreadWord::of_thread(offset) })
        }
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

    #[test]
    fn numbers_are_read_where_the_pattern_has_them() {
        let code =
            [0x48, 0x8b, 0x05, 0x10, 0, 0, 0, 0x48, 0x8b, 0x80, 0xf0, 0xff, 0xff, 0xff, 0xc3];
        let [structure, offset] = numbers(&code, FAR).unwrap();
        assert_eq!(structure.target(), code.as_ptr().addr() + 7 + 16);
        assert_eq!(offset.value, -16);
        assert!(numbers(&code, NEAR).is_none(), "another instruction where the return should be");
        assert!(numbers(&code[..14], FAR).is_none(), "cut short");
    }
}
