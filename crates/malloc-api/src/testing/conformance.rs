//! Owns the contract of [`Malloc`] as a program: each line of the trait's table, checked through the trait alone.
//! Leaves random programs and memory exhaustion to `malloc-trace` and [`FailAfter`](super::FailAfter).

use super::live::Live;
use super::nonconformance::Nonconformance;
use crate::{MAX_REQUEST, Malloc};

/// Checks every line of [`Malloc`]'s table against `allocator`.
///
/// It needs about 4 MiB from the allocator, and one request of [`MAX_REQUEST`] bytes is tried and may fail. All blocks
/// are freed again unless it panics.
///
/// # Panics
///
/// On the first [`Nonconformance`], with its text.
///
/// # Examples
///
/// ```
/// malloc_api::testing::conformance(&malloc_api::LibcMalloc);
/// ```
#[track_caller]
pub fn conformance<A: Malloc + ?Sized>(allocator: &A) {
    if let Err(broken) = try_conformance(allocator) {
        panic!("not a conforming Malloc: {broken}");
    }
}

/// Checks every line of [`Malloc`]'s table against `allocator`, as [`conformance`] does, without panicking.
///
/// # Errors
///
/// The first [`Nonconformance`]; the blocks allocated so far are then leaked, since their allocator is broken.
pub fn try_conformance<A: Malloc + ?Sized>(allocator: &A) -> Result<(), Nonconformance> {
    malloc_line(allocator)?;
    calloc_line(allocator)?;
    realloc_line(allocator)?;
    free_line(allocator)
}

/// Both sides of every boundary that an allocator is likely to have: words, classes, pages, pools, large blocks.
const SIZES: [usize; 33] = [
    0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 64, 100, 128, 255, 256, 257, 496, 511, 512, 513,
    1024, 4095, 4096, 4097, 16_384, 16_385, 40_000, 131_072, 262_145, 1_048_577,
];

/// Sizes of which `realloc` is tried for every pair.
const RESIZES: &[usize] = &[
    0, 1, 8, 16, 17, 24, 100, 384, 385, 400, 500, 512, 513, 2000, 4096, 5000, 16_400, 70_000,
    300_000,
];

/// No request above `MAX_REQUEST` may be served; the product of the last two overflows, once to zero.
const OVERSIZE: [(usize, usize); 7] = [
    (1, MAX_REQUEST + 1),
    (MAX_REQUEST + 1, 1),
    (1, usize::MAX),
    (usize::MAX, 1),
    (2, MAX_REQUEST / 2 + 1),
    (usize::MAX, 2),
    (1 << (usize::BITS / 2), 1 << (usize::BITS / 2)),
];

fn malloc_line<A: Malloc + ?Sized>(allocator: &A) -> Result<(), Nonconformance> {
    // The second round sees recycled memory.
    for _ in 0..2 {
        let mut live = Live::new(allocator);
        for size in SIZES {
            live.malloc(size)?;
            live.malloc(size)?;
        }
        live.unchanged()?;
        live.free_all()?;
    }
    for (_, size) in OVERSIZE.into_iter().filter(|&(nelem, _)| nelem == 1) {
        if allocator.malloc(size).is_some() {
            return Err(Nonconformance::Oversize { method: "malloc", nelem: 1, elsize: size });
        }
    }
    Ok(())
}

fn calloc_line<A: Malloc + ?Sized>(allocator: &A) -> Result<(), Nonconformance> {
    for split in [1, 2, 8] {
        // Leave dirty memory of each size behind.
        let mut dirty = Live::new(allocator);
        for size in SIZES {
            dirty.malloc(size)?;
        }
        dirty.free_all()?;
        let mut live = Live::new(allocator);
        for size in SIZES {
            live.calloc(size / split, split)?;
            live.calloc(split, size / split)?;
        }
        live.unchanged()?;
        live.free_all()?;
    }
    let mut live = Live::new(allocator);
    for (nelem, elsize) in [(0, 0), (0, 8), (8, 0), (0, usize::MAX), (usize::MAX, 0)] {
        live.calloc(nelem, elsize)?;
    }
    live.free_all()?;
    for (nelem, elsize) in OVERSIZE {
        if allocator.calloc(nelem, elsize).is_some() {
            return Err(Nonconformance::Oversize { method: "calloc", nelem, elsize });
        }
    }
    Ok(())
}

fn realloc_line<A: Malloc + ?Sized>(allocator: &A) -> Result<(), Nonconformance> {
    realloc_of_none(allocator)?;
    for &old_size in RESIZES {
        for &new_size in RESIZES {
            // The block has live neighbours of its old and its new size, allocated before and after it.
            let mut live = Live::new(allocator);
            live.malloc(old_size)?;
            let place = live.malloc(old_size)?;
            live.malloc(old_size)?;
            live.malloc(new_size)?;
            live.realloc(place, new_size)?;
            // A block that the call freed by mistake would be handed out again.
            live.malloc(new_size)?;
            live.malloc(old_size)?;
            live.unchanged()?;
            live.realloc(place, old_size)?;
            live.unchanged()?;
            live.free_all()?;
        }
    }
    for &old_size in RESIZES {
        failed_realloc(allocator, old_size)?;
    }
    Ok(())
}

fn realloc_of_none<A: Malloc + ?Sized>(allocator: &A) -> Result<(), Nonconformance> {
    let mut live = Live::new(allocator);
    for size in SIZES {
        // SAFETY: (1) `None` is allowed; (2) there is no old block.
        let answer = unsafe { allocator.realloc(None, size) };
        let block = live.inspect("realloc", answer, size)?;
        live.keep(block);
    }
    for (_, size) in OVERSIZE.into_iter().filter(|&(nelem, _)| nelem == 1) {
        // SAFETY: (1) `None` is allowed; (2) there is no old block.
        if unsafe { allocator.realloc(None, size) }.is_some() {
            return Err(Nonconformance::Oversize { method: "realloc", nelem: 1, elsize: size });
        }
    }
    live.free_all()
}

/// `MAX_REQUEST + 1` must be refused; `MAX_REQUEST` reaches the backend and no machine can serve it.
fn failed_realloc<A: Malloc + ?Sized>(
    allocator: &A,
    old_size: usize,
) -> Result<(), Nonconformance> {
    for new_size in [MAX_REQUEST + 1, usize::MAX, MAX_REQUEST] {
        let mut live = Live::new(allocator);
        let place = live.malloc(old_size)?;
        let old = live.blocks[place].expect("just allocated");
        // SAFETY: (1) `old` is live; (2) an answer other than `None` ends the check without using it.
        if unsafe { allocator.realloc(Some(old.ptr), new_size) }.is_some() {
            let method = "realloc";
            return Err(Nonconformance::Oversize { method, nelem: 1, elsize: new_size });
        }
        if let Some(offset) = old.first_changed() {
            return Err(Nonconformance::FailedReallocTouched { old_size, offset });
        }
        // A block that the call freed by mistake would be handed out again.
        live.malloc(old_size)?;
        live.malloc(old_size)?;
        live.unchanged()?;
        live.free_all()?;
    }
    Ok(())
}

fn free_line<A: Malloc + ?Sized>(allocator: &A) -> Result<(), Nonconformance> {
    let mut live = Live::new(allocator);
    for size in SIZES {
        live.malloc(size)?;
        // SAFETY: (1) `None` is allowed; (2) there is no block.
        unsafe { allocator.free(None) };
        // A block that the call freed by mistake would be handed out again.
        live.malloc(size)?;
    }
    live.free_all()
}
