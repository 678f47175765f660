//! Memory goes back to the system, page by page if need be, and the statistics say where the rest is.

use malloc_api::{LibcMalloc, Malloc};
use pymalloc_core::{LocalPymalloc, ReleaseLevel};

fn main() {
    let alloc = LocalPymalloc::new(LibcMalloc);
    let blocks: Vec<_> = (0..200_000).map(|i| alloc.malloc(16 + i % 496).unwrap()).collect();
    for (index, block) in blocks.iter().enumerate() {
        if index % 100 != 0 {
            // SAFETY: live, and not used again.
            unsafe { alloc.free(Some(*block)) };
        }
    }
    let returned = alloc.release(ReleaseLevel::Pages);
    println!("{returned} bytes returned\n{}", alloc.stats());
    assert!(returned > 10 << 20);
    for block in blocks.into_iter().step_by(100) {
        // SAFETY: live, and forgotten.
        unsafe { alloc.free(Some(block)) };
    }
    assert_eq!(alloc.allocated_blocks(), 0);
}
