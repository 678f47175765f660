//! Owns the contract of [`Malloc`] as a program: each line of the trait's table, checked through the trait alone.
//! Leaves random programs and memory exhaustion to `malloc-trace` and [`FailAfter`](super::FailAfter).

use core::fmt;
use core::ptr::NonNull;

use super::block::Block;
use crate::{MAX_REQUEST, MIN_ALIGN, Malloc};

/// A way in which an allocator breaks the contract of [`Malloc`]; sizes and offsets are in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Nonconformance {
    /// A request that every allocator must serve was answered with `None`.
    Refused {
        /// The method called.
        method: &'static str,
        /// The size requested.
        size: usize,
    },
    /// A block is not aligned to [`MIN_ALIGN`].
    Misaligned {
        /// The method called.
        method: &'static str,
        /// The size requested.
        size: usize,
        /// The address answered.
        address: usize,
    },
    /// A block shares bytes with a block that is still live; for zero-size blocks, its address.
    Overlap {
        /// The method called.
        method: &'static str,
        /// The size requested.
        size: usize,
        /// The address answered.
        address: usize,
    },
    /// A request for more than [`MAX_REQUEST`] bytes, or for a product that overflows, was served.
    Oversize {
        /// The method called.
        method: &'static str,
        /// The number of elements; 1 but for `calloc`.
        nelem: usize,
        /// The size of an element.
        elsize: usize,
    },
    /// A byte from `calloc` is not zero.
    NotZeroed {
        /// The size requested.
        size: usize,
        /// The first byte that is wrong.
        offset: usize,
        /// What it holds.
        found: u8,
    },
    /// `realloc` did not keep a byte within `min(old_size, new_size)`.
    ContentLost {
        /// The size before.
        old_size: usize,
        /// The size requested.
        new_size: usize,
        /// The first byte that is wrong.
        offset: usize,
    },
    /// `realloc` answered `None` and changed the old block nevertheless.
    FailedReallocTouched {
        /// The size of the old block.
        old_size: usize,
        /// The first byte that is wrong.
        offset: usize,
    },
    /// A live block changed although nobody wrote to it.
    Changed {
        /// The size of the block.
        size: usize,
        /// The first byte that is wrong.
        offset: usize,
    },
}

impl fmt::Display for Nonconformance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Refused { method, size } => {
                write!(f, "{method} of {size} bytes answered None; expected a block")
            }
            Self::Misaligned { method, size, address } => write!(
                f,
                "{method} of {size} bytes answered {address:#x}; expected a multiple of {MIN_ALIGN}"
            ),
            Self::Overlap { method, size, address } => write!(
                f,
                "{method} of {size} bytes answered {address:#x}, inside a live block; expected memory of its own"
            ),
            Self::Oversize { method, nelem, elsize } => write!(
                f,
                "{method} of {nelem} x {elsize} bytes answered a block; expected None above {MAX_REQUEST} bytes"
            ),
            Self::NotZeroed { size, offset, found } => write!(
                f,
                "calloc of {size} bytes holds {found:#04x} at offset {offset}; expected only zeros"
            ),
            Self::ContentLost { old_size, new_size, offset } => write!(
                f,
                "realloc from {old_size} to {new_size} bytes lost the byte at offset {offset}; expected the first \
                 {} bytes kept",
                old_size.min(new_size)
            ),
            Self::FailedReallocTouched { old_size, offset } => write!(
                f,
                "realloc of a {old_size}-byte block answered None but changed offset {offset}; expected the block \
                 untouched"
            ),
            Self::Changed { size, offset } => write!(
                f,
                "a live block of {size} bytes changed at offset {offset}; expected nobody to write to it"
            ),
        }
    }
}

impl core::error::Error for Nonconformance {}

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

/// The live blocks of one check, each filled with a pattern of its own.
struct Live<'a, A: ?Sized> {
    allocator: &'a A,
    blocks: [Option<Block>; 2 * SIZES.len()],
    filled: u8,
}

impl<'a, A: Malloc + ?Sized> Live<'a, A> {
    fn new(allocator: &'a A) -> Self {
        Self { allocator, blocks: [None; 2 * SIZES.len()], filled: 0 }
    }

    /// Checks a block just handed out, except its content.
    fn inspect(
        &self,
        method: &'static str,
        answer: Option<NonNull<u8>>,
        size: usize,
    ) -> Result<Block, Nonconformance> {
        let ptr = answer.ok_or(Nonconformance::Refused { method, size })?;
        let address = ptr.addr().get();
        if address % MIN_ALIGN != 0 {
            return Err(Nonconformance::Misaligned { method, size, address });
        }
        let block = Block::new(ptr, size);
        if self.blocks.iter().flatten().any(|other| other.overlaps(&block)) {
            return Err(Nonconformance::Overlap { method, size, address });
        }
        Ok(block)
    }

    /// Keeps an inspected block live, filled, and returns its place.
    fn keep(&mut self, mut block: Block) -> usize {
        self.filled = self.filled.wrapping_add(37);
        block.fill(self.filled);
        let place = self.blocks.iter().position(Option::is_none);
        let place = place.expect("the suite keeps at most two blocks of a size");
        self.blocks[place] = Some(block);
        place
    }

    fn malloc(&mut self, size: usize) -> Result<usize, Nonconformance> {
        let block = self.inspect("malloc", self.allocator.malloc(size), size)?;
        Ok(self.keep(block))
    }

    fn calloc(&mut self, nelem: usize, elsize: usize) -> Result<usize, Nonconformance> {
        let size = nelem * elsize;
        let block = self.inspect("calloc", self.allocator.calloc(nelem, elsize), size)?;
        if let Some((offset, found)) = block.first_nonzero() {
            return Err(Nonconformance::NotZeroed { size, offset, found });
        }
        Ok(self.keep(block))
    }

    /// Resizes the block at `place`, which must succeed, and checks what became of its content.
    fn realloc(&mut self, place: usize, new_size: usize) -> Result<(), Nonconformance> {
        let mut old = self.take(place)?;
        let old_size = old.size;
        // SAFETY: (1) `old` is live; (2) only `resized` is used once the call succeeded.
        let answer = unsafe { self.allocator.realloc(Some(old.ptr), new_size) };
        let resized = self.inspect("realloc", answer, new_size)?;
        old = old.resized(resized.ptr, old_size.min(new_size));
        if let Some(offset) = old.first_changed() {
            return Err(Nonconformance::ContentLost { old_size, new_size, offset });
        }
        let mut resized = resized;
        resized.fill(old.seed);
        self.blocks[place] = Some(resized);
        Ok(())
    }

    /// Takes a block out of the live set after checking that nobody wrote to it.
    fn take(&mut self, place: usize) -> Result<Block, Nonconformance> {
        let block = self.blocks[place].take().expect("the place holds a live block");
        match block.first_changed() {
            Some(offset) => Err(Nonconformance::Changed { size: block.size, offset }),
            None => Ok(block),
        }
    }

    fn free(&mut self, place: usize) -> Result<(), Nonconformance> {
        let block = self.take(place)?;
        // SAFETY: (1) the block is live and (2) was taken out of the set of live ones.
        unsafe { self.allocator.free(Some(block.ptr)) };
        Ok(())
    }

    fn unchanged(&self) -> Result<(), Nonconformance> {
        for block in self.blocks.iter().flatten() {
            if let Some(offset) = block.first_changed() {
                return Err(Nonconformance::Changed { size: block.size, offset });
            }
        }
        Ok(())
    }

    /// Frees every second block first, so that the others have freed neighbours.
    fn free_all(mut self) -> Result<(), Nonconformance> {
        for parity in [1, 0] {
            for place in (parity..self.blocks.len()).step_by(2) {
                if self.blocks[place].is_some() {
                    self.free(place)?;
                }
            }
            self.unchanged()?;
        }
        Ok(())
    }
}

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
