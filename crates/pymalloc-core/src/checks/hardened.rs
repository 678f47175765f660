//! Owns the checks of feature `hardened`: links are encoded, and every pointer that comes back is looked at first.
//!
//! A freed block holds two words: its link, mixed with a secret of the process and with its own address, and a seal that
//! only the allocator can have written there. A program that writes to a block after freeing it breaks the seal.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

use malloc_api::{MIN_ALIGN, Malloc};

use crate::checks::annotate;
use crate::checks::fatal::{Misuse, fatal};
use crate::config::GRAIN_BYTES;
use crate::pymalloc::Pymalloc;
use crate::source::ArenaSource;

const WORD_BYTES: usize = size_of::<usize>();
const _: () = assert!(GRAIN_BYTES >= 2 * WORD_BYTES, "link and seal fit into every block");

/// 0 until the first use.
static SECRET: AtomicUsize = AtomicUsize::new(0);

/// A number that differs between processes, as far as the system places code and stack at random.
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
    let coded = next.map_addr(|address| address ^ secret() ^ block.addr().get().rotate_left(17));
    annotate::in_free_block(block, || {
        // SAFETY: 1: a block has two words and is aligned to them.
        unsafe { block.cast::<*mut u8>().write(coded) };
        // SAFETY: as above.
        unsafe { seal_of(block).write(seal(block)) };
    });
}

/// Reads the link of a freed block; aborts with a message if the block was written to since.
///
/// # Safety
///
/// 1. [`write_link`] wrote it.
#[inline]
pub(crate) unsafe fn read_link(block: NonNull<u8>) -> *mut u8 {
    // SAFETY: 1: both words are initialised.
    let found = annotate::in_free_block(block, || unsafe { seal_of(block).read() });
    if found != seal(block) {
        fatal(Misuse::WriteAfterFree, block.as_ptr());
    }
    // SAFETY: 1.
    let coded = annotate::in_free_block(block, || unsafe { block.cast::<*mut u8>().read() });
    let next = coded.map_addr(|address| address ^ secret() ^ block.addr().get().rotate_left(17));
    if next.addr() % GRAIN_BYTES != 0 {
        fatal(Misuse::WriteAfterFree, block.as_ptr());
    }
    next
}

impl<R: Malloc, S: ArenaSource> Pymalloc<R, S> {
    /// Aborts with a message unless `block` may be a live block.
    ///
    /// For addresses in our pools the answer is certain, up to a block that has a new owner by now, and one whose seal
    /// was overwritten after it was freed: not the start of a block, never handed out, or free. Of other addresses only
    /// the alignment is checked: they are the fallback's to judge.
    #[inline]
    pub(crate) fn check_live(&self, block: *mut u8) {
        let Some(block) = NonNull::new(block) else { return };
        let address = block.addr().get();
        let Some(class) = self.map.class_of(address) else {
            if address % MIN_ALIGN != 0 {
                fatal(Misuse::NotABlock, block.as_ptr());
            }
            return;
        };
        // SAFETY: it has a class.
        let pool = unsafe { self.map.pool_of_block(address) };
        let offset = address - pool.base().addr().get();
        let index = class.geometry().block_at(offset);
        if index * class.size() != offset || index >= class.blocks_per_pool() {
            fatal(Misuse::NotABlock, block.as_ptr());
        }
        // A live block can hold its seal by chance or from its last life, so the list has the last word. Where a memory
        // checker watches, a block that is shorter than its seal may not be read.
        // SAFETY: a block of an open pool is mapped, and a live one may hold any bytes.
        let may_be_free = annotate::IS_ON || unsafe { seal_of(block).read() } == seal(block);
        if pool.is_idle(index) || may_be_free && pool.freed().any(|freed| freed == block) {
            fatal(Misuse::DoubleFree, block.as_ptr());
        }
    }
}
