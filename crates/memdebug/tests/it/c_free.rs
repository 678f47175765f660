//! Blocks that are given to the C library's `free` or `realloc`.

use std::os::unix::process::ExitStatusExt;

use malloc_api::Malloc;
use memdebug::{Domain, Host, handler, report_blocks_given_to_c};
use rstest::rstest;

use crate::support::hooks_of;

/// Blocks of one domain know where they were allocated.
fn options_of(letter: &str) -> &'static str {
    if letter == "m" { "backtrace=4" } else { "" }
}

/// What a child does: gives a block to a function of the C library that refuses it, or aborts without that.
pub(crate) fn child(what: &str) {
    let host = Host::new().with_handler(handler::abort);
    report_blocks_given_to_c(host).unwrap();
    let (function, letter) = what.split_once(' ').expect("a function and a domain");
    let domain = Domain::from_letter(letter.as_bytes()[0]).unwrap();
    let hooks = hooks_of(host, domain, options_of(letter));
    let blocks: Vec<_> = (0..100).map(|_| hooks.malloc(600).unwrap()).collect();
    let block = blocks[50].as_ptr();
    eprintln!("block {block:p}");
    match function {
        // SAFETY: a planted bug: no block of the C library.
        "free" => unsafe { free_beside(block, blocks[51].as_ptr()) },
        // SAFETY: as above.
        "realloc" => _ = unsafe { libc::realloc(block.cast(), 1000) },
        "strcmp" => {
            // SAFETY: a planted bug: no page is there.
            let order = unsafe { libc::strcmp(block.cast(), std::ptr::without_provenance(64)) };
            std::hint::black_box(order);
        }
        // SAFETY: no memory is involved.
        _ => unsafe { libc::abort() },
    }
}

/// C's `free`, called with another block in a register that the call preserves.
#[cfg(target_arch = "x86_64")]
unsafe fn free_beside(block: *mut u8, other: *mut u8) {
    // SAFETY: the call of a function of the C library, as the caller wants it.
    unsafe {
        std::arch::asm!(
            "call {free}", free = sym libc::free, in("rdi") block, in("r12") other,
            clobber_abi("C")
        );
    }
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn free_beside(block: *mut u8, _other: *mut u8) {
    // SAFETY: as the caller wants it.
    unsafe { libc::free(block.cast()) }
}

/// Such a block is named where the C library has its address left, else the call alone; no other abort or fault is reported.
#[rstest]
fn blocks_given_to_the_c_library(
    #[values("free", "realloc", "abort", "strcmp")] function: &str,
    #[values("r", "m", "o")] letter: &str,
) {
    let output = crate::child::run(&format!("to C:{function} {letter}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    let signal = if function == "strcmp" { libc::SIGSEGV } else { libc::SIGABRT };
    assert_eq!(output.status.signal(), Some(signal), "{errors}");
    let fatal = errors.lines().filter(|line| line.starts_with("Fatal Python error: "));
    let fatal: Vec<_> = fatal.collect();
    if !["free", "realloc"].contains(&function) {
        assert!(fatal.is_empty(), "{errors}");
        return;
    }
    assert_eq!(fatal.len(), 1, "{errors}");
    assert!(fatal[0].starts_with(&format!("Fatal Python error: {function}: ")), "{errors}");
    let stack = errors.split_once("Reported call made by (most recent call first):\n").unwrap().1;
    let first = stack.lines().next().unwrap();
    assert!(first.contains("/libc.so.6+0x"), "{errors}");
    let is_named = errors.contains("Debug memory block");
    assert!(is_named || (letter != "m" && function == "free"), "{errors}");
    if is_named {
        let block = errors.lines().find_map(|line| line.strip_prefix("block ")).unwrap();
        let named =
            format!("Debug memory block at address p={block}: API '{letter}'\n    600 bytes");
        assert!(errors.contains(&named), "{errors}");
        let says_where = errors.contains("Memory block allocated by (most recent call first):\n");
        assert_eq!(says_where, !options_of(letter).is_empty(), "{errors}");
    }
}
