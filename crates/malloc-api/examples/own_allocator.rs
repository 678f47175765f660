//! An allocator of one's own in 40 lines: a region that is never reused. It conforms, and serves a `Vec`.

use std::cell::{Cell, RefCell, UnsafeCell};
use std::collections::BTreeMap;
use std::ptr::NonNull;

use malloc_api::{AllocatorAdapter, MIN_ALIGN, Malloc, testing};

const REGION_BYTES: usize = 256 << 20;

/// Blocks follow each other; the sizes that `realloc` needs stand in a table of their own.
struct Bump {
    region: UnsafeCell<Vec<u128>>,
    used: Cell<usize>,
    sizes: RefCell<BTreeMap<NonNull<u8>, usize>>,
}

// SAFETY: blocks are disjoint pieces of the region, which moves with nothing (1, 5); fresh memory of the vector is zero
// and never reused, and `realloc` copies (2) before it gives up anything (3); no call unwinds (4).
unsafe impl Malloc for Bump {
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        let start = self.used.get();
        let end = start.checked_add(size.max(1))?;
        let end = end.checked_next_multiple_of(MIN_ALIGN).filter(|&end| end <= REGION_BYTES)?;
        self.used.set(end);
        // SAFETY: nobody else refers to the vector itself during the call.
        let region = unsafe { &mut *self.region.get() }.as_mut_ptr().cast::<u8>();
        // SAFETY: `start < end`, which is within the region.
        let block = NonNull::new(unsafe { region.add(start) })?;
        self.sizes.borrow_mut().insert(block, size);
        Some(block)
    }

    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        self.malloc(nelem.checked_mul(elsize)?)
    }

    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        let new = self.malloc(new_size)?;
        if let Some(old) = ptr {
            let old_size = self.sizes.borrow()[&old];
            // SAFETY: both blocks are live, disjoint, and at least this long.
            unsafe { old.copy_to_nonoverlapping(new, old_size.min(new_size)) };
        }
        Some(new)
    }

    unsafe fn free(&self, _: Option<NonNull<u8>>) {}
}

fn main() {
    let region = UnsafeCell::new(vec![0; REGION_BYTES / size_of::<u128>()]);
    let bump = Bump { region, used: Cell::new(0), sizes: RefCell::default() };
    testing::conformance(&bump);
    let mut words = allocator_api2::vec::Vec::new_in(AllocatorAdapter::new(&bump));
    words.extend(["arena", "pool", "block"]);
    assert_eq!(words.len(), 3);
}
