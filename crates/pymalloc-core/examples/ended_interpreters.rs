//! Interpreters with pools of their own: one ends while an object of it lives on elsewhere.

use std::ptr::NonNull;

use malloc_api::{LibcMalloc, Malloc};
use pymalloc_core::{Graveyard, LocalPymalloc, MmapArenas};

type Pools = LocalPymalloc<LibcMalloc, MmapArenas>;

static ENDED: Graveyard<LibcMalloc, MmapArenas> = Graveyard::new();

/// Frees a block of the interpreter that runs, or of one that has ended.
///
/// # Safety
///
/// 1. `block` is a live block of `pools` or of buried pools, and not used afterwards.
unsafe fn free(pools: &Pools, block: NonNull<u8>) {
    // SAFETY: 1, 2: by 1.
    if pools.owns(block.as_ptr()) || !unsafe { ENDED.free(block) } {
        // SAFETY: 1, 2: by 1, a block of these pools, or of their fallback.
        unsafe { pools.free(Some(block)) };
    }
}

fn main() {
    let running = Pools::new(LibcMalloc);
    let ending = Pools::new(LibcMalloc);
    let escaped: Vec<_> = (0..3).map(|_| ending.malloc(100).expect("memory")).collect();
    let own = running.malloc(100).expect("memory");
    assert_eq!(ENDED.bury(ending), 3);
    for block in escaped.into_iter().chain([own]) {
        // SAFETY: 1: live, and forgotten.
        unsafe { free(&running, block) };
    }
    assert_eq!((ENDED.allocated_blocks(), running.allocated_blocks()), (0, 0));
}
