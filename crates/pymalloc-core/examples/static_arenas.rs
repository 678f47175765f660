//! Without an operating system: arenas in a static buffer, no fallback, nothing but `core` in use.
//!
//! `cargo run --example static_arenas --no-default-features`

use malloc_api::Malloc;
use pymalloc_core::{LockedPymalloc, NoFallback, StaticArenas};

static BUFFER: StaticArenas<3> = StaticArenas::new();
static ALLOC: LockedPymalloc<NoFallback, &StaticArenas<3>> =
    LockedPymalloc::with_source(NoFallback, &BUFFER);

fn main() {
    let blocks: [_; 100] = core::array::from_fn(|index| ALLOC.malloc(1 + index * 5).unwrap());
    assert_eq!(ALLOC.allocated_blocks(), 100);
    assert_eq!(ALLOC.malloc(100_000), None, "the fallback has nothing");
    for block in blocks {
        // SAFETY: live, and forgotten.
        unsafe { ALLOC.free(Some(block)) };
    }
    ALLOC.check_invariants();
    assert_eq!(ALLOC.allocated_blocks(), 0);
}
