//! Owns the size classes: which class serves a size, and the geometry of that class's pools.
//!
//! How to change a class:
//!
//! 1. Up to [`SMALL_MAX`] the classes are CPython's, in steps of [`GRAIN_BYTES`]. Leave them: statistics and CPython's own
//!    tests count on them.
//! 2. A larger class is a number of blocks in `LARGER_BLOCKS`, in falling order of block size within one kind of pool. Its
//!    size follows: the pool's bytes by that number, rounded down to a grain.
//! 3. `LARGER_SINGLE` says how many of the larger classes have pools of one unit; the others have two.
//! 4. The last class must be [`POOLED_MAX`], and 254 classes are the most: both are asserted when this file is compiled.
//! 5. Everything else is computed. `cargo test -p pymalloc-core class_table -- --nocapture` then prints the new table: look at the waste,
//!    and put the table into `tests/it/size_classes.txt`.
//! 6. `cargo xtask bench` says what the change costs in time and memory.

use crate::config::{
    GRAIN_BYTES, IDLE_BYTES, LINE_BYTES, PAIR_UNITS, POOL_BYTES, POOLED_MAX, SMALL_MAX,
};
use crate::policy::{EXTEND_BYTES, LINE_START};

const SMALL_CLASSES: usize = SMALL_MAX / GRAIN_BYTES;

/// Blocks in a pool of each class above [`SMALL_MAX`], from the smallest class: 7 to 25 % between two sizes, little left
/// over at the end.
const LARGER_BLOCKS: [usize; 24] =
    [28, 25, 22, 20, 18, 16, 14, 13, 12, 11, 10, 9, 8, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4];

/// How many of these classes have pools of one unit: those up to 2048 bytes. The others have pairs.
const LARGER_SINGLE: usize = 13;

/// One of the [`SizeClass::COUNT`] block sizes.
///
/// 32 small classes step by 16 bytes to 512, as CPython's do; the larger ones step by 7 to 25 % to 8192.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SizeClass(
    /// Invariant 1: from 1 to `COUNT`. 0 is free to mean "no class" in maps of bytes.
    u8,
);

/// Rows of a table by class byte: row 0 stands for "no class".
pub(crate) const ROWS: usize = SizeClass::COUNT + 1;

/// What the slow paths know of a class.
#[derive(Clone, Copy)]
pub(crate) struct Geometry {
    /// Bytes in a block.
    pub(crate) size: u32,
    /// Blocks in a pool.
    pub(crate) blocks: u16,
    /// Units of `POOL_BYTES` in a pool.
    pub(crate) units: u8,
    /// Neighbouring blocks that are idle together: as many as take `IDLE_BYTES`.
    pub(crate) group: u8,
    /// Bytes of a pool before its first block.
    pub(crate) start: u8,
    /// `ceil(2^32 / size)`: multiplying by it divides an offset in the pool by `size`.
    reciprocal: u32,
    /// The fewest bytes for which a block stays where it is.
    least: u16,
    /// Groups of idle blocks that move to a pool's list at a time.
    pub(crate) extension: u8,
}

impl SizeClass {
    /// Number of classes.
    pub const COUNT: usize = SMALL_CLASSES + LARGER_BLOCKS.len();

    /// Number of classes that CPython has too: those up to [`SMALL_MAX`] bytes.
    pub const SMALL_COUNT: usize = SMALL_CLASSES;

    /// The class that serves `size` bytes; `None` for 0 and for more than [`POOLED_MAX`].
    #[inline]
    #[must_use]
    pub const fn of(size: usize) -> Option<Self> {
        if size == 0 || size > POOLED_MAX {
            return None;
        }
        Some(Self(CLASS_OF_GRAINS[size.div_ceil(GRAIN_BYTES)]))
    }

    /// The class at `index`, from 0 to `COUNT - 1`; `None` beyond.
    #[must_use]
    pub const fn from_index(index: usize) -> Option<Self> {
        if index < Self::COUNT { Some(Self(index as u8 + 1)) } else { None }
    }

    /// Position from 0, CPython's class number for the small classes.
    #[inline]
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize - 1
    }

    /// Bytes in a block of this class.
    #[inline]
    #[must_use]
    pub const fn size(self) -> usize {
        self.geometry().size as usize
    }

    /// Blocks in a pool of this class.
    #[inline]
    #[must_use]
    pub const fn blocks_per_pool(self) -> usize {
        self.geometry().blocks as usize
    }

    /// Bytes in a pool of this class.
    #[inline]
    #[must_use]
    pub const fn pool_bytes(self) -> usize {
        self.geometry().units as usize * POOL_BYTES
    }

    /// The byte that stands for this class in maps and as the row of its used pools; never 0.
    #[inline]
    pub(crate) const fn byte(self) -> u8 {
        self.0
    }

    /// The class of a map's byte; `None` for 0.
    #[inline]
    pub(crate) const fn from_byte(byte: u8) -> Option<Self> {
        if byte == 0 || byte as usize > Self::COUNT { None } else { Some(Self(byte)) }
    }

    /// Whether a block of this class stays where it is when it is resized to `bytes`: these fit, and are more than three quarters
    /// of the block or of the same class.
    #[inline]
    pub(crate) fn keeps(self, bytes: usize) -> bool {
        let Geometry { size, least, .. } = *self.geometry();
        (usize::from(least)..=size as usize).contains(&bytes)
    }

    #[inline]
    pub(crate) const fn geometry(self) -> &'static Geometry {
        &GEOMETRY[self.0 as usize]
    }

    /// All classes, from the smallest.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..Self::COUNT).filter_map(Self::from_index)
    }
}

impl Geometry {
    /// The block that lies `offset` bytes behind the first one. It is `offset / size` for every offset in a pool.
    #[inline]
    pub(crate) const fn block_at(&self, offset: usize) -> usize {
        ((offset as u64 * self.reciprocal as u64) >> 32) as usize
    }
}

/// The class byte of a size in grains, rounded up; 0 for no bytes.
pub(crate) static CLASS_OF_GRAINS: [u8; POOLED_MAX / GRAIN_BYTES + 1] = {
    let mut table = [0; POOLED_MAX / GRAIN_BYTES + 1];
    let mut grains = 1;
    let mut class = 1;
    while grains < table.len() {
        if GEOMETRY[class].size as usize / GRAIN_BYTES < grains {
            class += 1;
        }
        table[grains] = class as u8;
        grains += 1;
    }
    table
};

/// Where the first block of `size` bytes lies in a pool of `pool_bytes`: in blocks of whole cache lines the line begins within the block, as in
/// CPython's, whose pools have a header of as many bytes, unless that costs more than one block of a hundred.
///
/// A program with a cycle collector walks lists of blocks, by their first two words, and reads what follows these. Then a neighbour's
/// first words come with the rest of the block before.
const fn start_of(pool_bytes: usize, size: usize) -> usize {
    let is_cheap = pool_bytes % size >= LINE_START || pool_bytes / size >= 100;
    if size % LINE_BYTES == 0 && size <= SMALL_MAX && is_cheap { LINE_START } else { 0 }
}

static GEOMETRY: [Geometry; SizeClass::COUNT + 1] = {
    let (least, extension) = (1, 0);
    let (size, blocks, units, group, start, reciprocal) = (0, 0, 0, 1, 0, 0);
    let none = Geometry { size, blocks, units, group, start, reciprocal, least, extension };
    let mut table = [none; SizeClass::COUNT + 1];
    let mut class = 1;
    while class <= SizeClass::COUNT {
        let (size, units) = if class <= SMALL_CLASSES {
            (class * GRAIN_BYTES, 1)
        } else {
            let larger = class - SMALL_CLASSES - 1;
            let units = if larger < LARGER_SINGLE { 1 } else { PAIR_UNITS };
            (units * POOL_BYTES / LARGER_BLOCKS[larger] / GRAIN_BYTES * GRAIN_BYTES, units)
        };
        let group = IDLE_BYTES.div_ceil(size);
        let start = start_of(units * POOL_BYTES, size);
        let (smaller, quarters) = (table[class - 1].size as usize, size * 3 / 4);
        table[class] = Geometry {
            size: size as u32,
            blocks: ((units * POOL_BYTES - start) / size) as u16,
            units: units as u8,
            group: group as u8,
            start: start as u8,
            reciprocal: (1u64 << 32).div_ceil(size as u64) as u32,
            least: if smaller < quarters { smaller } else { quarters } as u16 + 1,
            extension: if size > EXTEND_BYTES {
                1
            } else {
                (EXTEND_BYTES / size).div_ceil(group) as u8
            },
        };
        class += 1;
    }
    table
};

const _: () = assert!(SizeClass::COUNT < u8::MAX as usize);
const _: () = assert!(GEOMETRY[SizeClass::COUNT].size as usize == POOLED_MAX);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_gets_the_smallest_class_that_holds_it() {
        for size in 1..=POOLED_MAX {
            let class = SizeClass::of(size).unwrap();
            assert!(class.size() >= size);
            if let Some(smaller) = class.index().checked_sub(1).and_then(SizeClass::from_index) {
                assert!(smaller.size() < size);
            }
        }
        assert_eq!(SizeClass::of(0), None);
        assert_eq!(SizeClass::of(POOLED_MAX + 1), None);
    }

    #[test]
    fn a_block_stays_for_more_than_three_quarters_or_the_same_class() {
        for class in SizeClass::all() {
            let size = class.size();
            for bytes in 0..=POOLED_MAX + 1 {
                let is_near = 4 * bytes > 3 * size || SizeClass::of(bytes) == Some(class);
                assert_eq!(class.keeps(bytes), bytes <= size && is_near, "{bytes} of {size}");
            }
        }
    }

    #[test]
    fn small_classes_are_cpythons() {
        for size in 1..=SMALL_MAX {
            let class = SizeClass::of(size).unwrap();
            assert_eq!(class.index(), (size - 1) >> 4);
            assert_eq!(class.size(), (class.index() + 1) * 16);
        }
    }

    #[test]
    fn division_by_multiplication_is_exact() {
        for class in SizeClass::all() {
            for offset in 0..class.pool_bytes() {
                assert_eq!(class.geometry().block_at(offset), offset / class.size());
            }
        }
    }

    #[test]
    fn a_pool_wastes_less_than_a_block() {
        for class in SizeClass::all() {
            let start = usize::from(class.geometry().start);
            let used = start + class.blocks_per_pool() * class.size();
            assert!(used <= class.pool_bytes() && class.pool_bytes() - used < class.size());
        }
    }

    #[test]
    fn a_line_begins_within_a_block_of_whole_lines() {
        let starts = [64, 128, 192, 256, 320, 384, 448, 512, 1024].map(|size| {
            let class = SizeClass::of(size).unwrap();
            (class.size() == size).then_some(class.geometry().start)
        });
        assert_eq!(starts, [48, 48, 48, 0, 48, 48, 48, 0, 0].map(Some));
    }
}
