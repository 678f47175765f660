//! Owns what feature `hardened` keeps in freed blocks, and the end of a program that is found to have damaged them.
//! Leaves the questions that need a pool to `pool.rs`, and those that need a large block to `sources/run_memory.rs`.
//!
//! A freed block holds two words: its link, mixed with a secret of the process and with its own address, and a seal that
//! only the allocator can have written there. A program that writes to a block after freeing it breaks the seal.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::checks::annotate;
use crate::config::GRAIN_BYTES;

/// Whether this build checks links and blocks.
pub(crate) const IS_ON: bool = cfg!(feature = "hardened");

const _: () = assert!(GRAIN_BYTES >= 2 * size_of::<usize>(), "link and seal fit into every block");

/// 0 until the first use.
static SECRET: AtomicUsize = AtomicUsize::new(0);

/// A number that differs between processes if the system places code and stack at random.
#[inline(always)]
fn secret() -> usize {
    match SECRET.load(Ordering::Relaxed) {
        0 => new_secret(),
        secret => secret,
    }
}

/// Racing threads agree on the secret of the first.
#[cold]
#[inline(never)]
fn new_secret() -> usize {
    let here = 0_u8;
    let places = (&raw const here).addr() ^ (&raw const SECRET).addr().rotate_left(29);
    let mixed = places.wrapping_mul(0x9E37_79B9_7F4A_7C15_u64 as usize) | 1;
    match SECRET.compare_exchange(0, mixed, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => mixed,
        Err(first) => first,
    }
}

/// Mixes a link of `block`, or takes the mixture apart.
#[inline]
fn code(block: NonNull<u8>, link: *mut u8) -> *mut u8 {
    link.map_addr(|address| address ^ secret() ^ block.addr().get().rotate_left(17))
}

fn seal(block: NonNull<u8>) -> usize {
    (secret() ^ block.addr().get()).wrapping_mul(0xD6E8_FEB8_6659_FD93_u64 as usize)
}

fn seal_of(block: NonNull<u8>) -> NonNull<usize> {
    // SAFETY: a block has two words (asserted above).
    unsafe { block.cast::<usize>().add(1) }
}

/// Writes the link and the seal of a freed block.
///
/// # Safety
///
/// 1. `block` is a block of a pool that nobody else uses.
#[inline]
pub(crate) unsafe fn write_link(block: NonNull<u8>, next: *mut u8) {
    annotate::in_free_block(block, || {
        // SAFETY: 1: a block has two words and is aligned to them.
        unsafe { block.cast::<*mut u8>().write(code(block, next)) };
        // SAFETY: as above.
        unsafe { seal_of(block).write(seal(block)) };
    });
}

/// Reads the link of a freed block; aborts with a message if the program has written to the block since.
///
/// # Safety
///
/// 1. [`write_link`] wrote it.
#[inline]
pub(crate) unsafe fn read_link(block: NonNull<u8>) -> *mut u8 {
    // SAFETY: 1: both words are initialised.
    let coded = annotate::in_free_block(block, || unsafe { block.cast::<*mut u8>().read() });
    let next = code(block, coded);
    // SAFETY: 1.
    let is_whole = annotate::in_free_block(block, || unsafe { is_sealed(block) });
    if !is_whole || next.addr() % GRAIN_BYTES != 0 {
        fatal(Misuse::WriteAfterFree, block);
    }
    next
}

/// Does `block` hold its seal? A live block may, by chance or from its last life.
///
/// # Safety
///
/// 1. `block` is a block of an open pool, live or free.
#[inline]
pub(crate) unsafe fn is_sealed(block: NonNull<u8>) -> bool {
    // SAFETY: 1: mapped, and any bytes are a word.
    unsafe { seal_of(block).read() == seal(block) }
}

/// A misuse that was recognised for certain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Misuse {
    /// The program freed a block that is free.
    DoubleFree,
    /// The program freed an address that begins no block.
    NotABlock,
    /// The program wrote to a freed block before it was handed out again.
    WriteAfterFree,
}

impl Misuse {
    const fn text(self) -> &'static str {
        match self {
            Self::DoubleFree => "double free: the block is free already",
            Self::NotABlock => "invalid free: the address begins no block",
            Self::WriteAfterFree => "use after free: a freed block was written to",
        }
    }
}

/// Reports a certain heap corruption in one line on stderr, without allocating, and aborts.
#[cfg(feature = "std")]
#[cold]
#[inline(never)]
pub(crate) fn fatal(misuse: Misuse, block: NonNull<u8>) -> ! {
    use std::io::Write;
    // Ignore write errors: there is nowhere to report them. stderr is unbuffered, and formatting a pointer allocates nothing.
    let _ = writeln!(std::io::stderr(), "pymalloc-core: {} ({block:p})", misuse.text());
    std::process::abort()
}

/// Panics with the report in a function that cannot unwind, which aborts.
#[cfg(not(feature = "std"))]
#[cold]
#[inline(never)]
pub(crate) fn fatal(misuse: Misuse, block: NonNull<u8>) -> ! {
    extern "C" fn end(misuse: Misuse, block: NonNull<u8>) -> ! {
        panic!("pymalloc-core: {} ({block:p})", misuse.text())
    }
    end(misuse, block)
}
