//! Owns the counts: one walk that takes them, without allocating. Leaves their text to `stats_text.rs`.

use malloc_api::Malloc;

use crate::config::{ARENA_BYTES, POOL_BYTES};
use crate::pymalloc::Pymalloc;
use crate::size_class::SizeClass;
use crate::source::ArenaSource;

/// Counts of one size class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ClassStats {
    /// Bytes in a block.
    pub size: usize,
    /// Pools of this class.
    pub pools: usize,
    /// Blocks handed out.
    pub blocks_in_use: usize,
    /// Blocks that wait in those pools for the next request.
    pub blocks_available: usize,
    /// Bytes at the ends of those pools that are too few for a block.
    pub quantization_bytes: usize,
}

/// Occupancy of one arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ArenaStats {
    /// Where it begins.
    pub address: usize,
    /// Bytes that pools can have.
    pub bytes: usize,
    /// Of these, bytes that are in no pool.
    pub free_bytes: usize,
    /// Of these, bytes whose memory has not gone back to the system, nor waits for its first use.
    pub resident_free_bytes: usize,
    /// Blocks handed out.
    pub blocks_in_use: usize,
    /// Bytes of those blocks.
    pub bytes_in_use: usize,
}

/// One pool, where it lies and what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct PoolStats {
    /// Where its arena begins.
    pub arena: usize,
    /// Bytes from there to the pool.
    pub offset: usize,
    /// Its length in bytes.
    pub bytes: usize,
    /// What it holds.
    pub contents: PoolContents,
}

/// What a pool holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum PoolContents {
    /// Blocks of one class; also the pool that a class keeps although none of its blocks is handed out.
    Blocks {
        /// Bytes of a block.
        size: usize,
        /// Blocks handed out.
        in_use: usize,
        /// Blocks that fit.
        capacity: usize,
    },
    /// Nothing: any class may have it next.
    Free {
        /// Whether its memory has not gone back to the system, nor waits for its first use.
        is_resident: bool,
    },
}

/// Counts of an allocator; its [`Display`](core::fmt::Display) is the text of CPython's `sys._debugmallocstats()`.
///
/// `arenas_current * ARENA_BYTES` is the sum of the bytes of all blocks, in use and available, `unused_pools *
/// POOL_BYTES`, and the three kinds of lost bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Stats {
    /// By class, from the smallest.
    #[cfg_attr(feature = "serde", serde(serialize_with = "as_slice"))]
    pub classes: [ClassStats; SizeClass::COUNT],
    /// Arenas obtained so far.
    pub arenas_ever: usize,
    /// Most arenas at a time.
    pub arenas_peak: usize,
    /// Arenas now.
    pub arenas_current: usize,
    /// Free pools, in units of [`POOL_BYTES`].
    pub unused_pools: usize,
    /// Bytes of pool records: the first unit of each arena.
    pub header_bytes: usize,
    /// Bytes at the ends of pools that are too few for a block.
    pub quantization_bytes: usize,
    /// Bytes of arenas in which no pool fits.
    pub alignment_bytes: usize,
    /// Live blocks of the fallback: zero-size and large ones.
    pub raw_blocks: usize,
    /// Calls of `malloc`, where the caller counts them; adds a line to the text.
    pub malloc_calls: Option<u64>,
    /// Tables of the address test: those of spans, and those of arenas elsewhere.
    pub map_tables: [usize; 2],
    /// Bytes of the address test: of the allocator itself, of the span's table, and of the other one.
    pub map_bytes: [usize; 3],
}

#[cfg(feature = "serde")]
fn as_slice<S: serde::Serializer>(
    classes: &[ClassStats; SizeClass::COUNT],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serde::Serialize::serialize(&classes[..], serializer)
}

impl Stats {
    /// Blocks handed out, those of the fallback included.
    #[must_use]
    pub fn allocated_blocks(&self) -> usize {
        self.raw_blocks + self.classes.iter().map(|class| class.blocks_in_use).sum::<usize>()
    }

    /// Bytes of blocks handed out from pools, counted as whole blocks.
    #[must_use]
    pub fn bytes_in_use(&self) -> usize {
        self.classes.iter().map(|class| class.blocks_in_use * class.size).sum()
    }

    /// Bytes of blocks that wait in open pools.
    #[must_use]
    pub fn bytes_available(&self) -> usize {
        self.classes.iter().map(|class| class.blocks_available * class.size).sum()
    }

    /// Sum of all bytes; equal to `arenas_current * ARENA_BYTES`.
    #[must_use]
    pub fn total_bytes(&self) -> usize {
        self.bytes_in_use()
            + self.bytes_available()
            + self.unused_pools * POOL_BYTES
            + self.header_bytes
            + self.quantization_bytes
            + self.alignment_bytes
    }
}

impl<R: Malloc, S: ArenaSource> Pymalloc<R, S> {
    /// Counts as of now, taken without allocating.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let mut stats = Stats {
            classes: [ClassStats::default(); SizeClass::COUNT],
            arenas_ever: self.arenas_ever,
            arenas_peak: self.arenas_peak,
            arenas_current: self.arenas.count(),
            unused_pools: 0,
            header_bytes: self.arenas.count() * POOL_BYTES,
            quantization_bytes: 0,
            alignment_bytes: 0,
            raw_blocks: self.raw_blocks,
            malloc_calls: None,
            map_tables: [0; 2],
            map_bytes: [size_of_val(&self.map), 0, 0],
        };
        let mut highest = 0;
        for arena in self.arenas.iter() {
            stats.unused_pools += arena.free_mask().count_ones() as usize;
            stats.alignment_bytes += arena.alignment_bytes();
            highest = highest.max(arena.address().addr().get() + ARENA_BYTES - 1);
            for unit in arena.open_units() {
                let pool = arena.pool(unit);
                let Some(class) = pool.class() else { continue };
                let counts = &mut stats.classes[class.index()];
                counts.pools += 1;
                counts.blocks_in_use += pool.live_blocks();
            }
        }
        for class in SizeClass::all() {
            let counts = &mut stats.classes[class.index()];
            let blocks = counts.pools * class.blocks_per_pool();
            counts.size = class.size();
            counts.blocks_available = blocks - counts.blocks_in_use;
            counts.quantization_bytes = counts.pools * class.pool_bytes() - blocks * class.size();
            stats.quantization_bytes += counts.quantization_bytes;
        }
        let [span, foreign] = self.map.footprint(highest);
        stats.map_tables = [span.0, foreign.0];
        stats.map_bytes[1] = span.1;
        stats.map_bytes[2] = foreign.1;
        stats
    }

    /// Calls `f` with the occupancy of each arena.
    pub fn for_each_arena(&self, mut f: impl FnMut(ArenaStats)) {
        for arena in self.arenas.iter() {
            let mut stats = ArenaStats {
                address: arena.address().addr().get(),
                bytes: arena.units() * POOL_BYTES,
                free_bytes: arena.free_mask().count_ones() as usize * POOL_BYTES,
                resident_free_bytes: arena.resident_mask().count_ones() as usize * POOL_BYTES,
                blocks_in_use: 0,
                bytes_in_use: 0,
            };
            for unit in arena.open_units() {
                let pool = arena.pool(unit);
                let Some(class) = pool.class() else { continue };
                let blocks = pool.live_blocks();
                stats.blocks_in_use += blocks;
                stats.bytes_in_use += blocks * class.size();
            }
            f(stats);
        }
    }

    /// Calls `f` with each pool, free ones too, arena by arena and in the order of their addresses in it.
    ///
    /// Allocates nothing. The order of the arenas is not specified. What an arena has before its first pool (slack for
    /// alignment, its records) and after its last one is not visited.
    pub fn for_each_pool(&self, mut f: impl FnMut(PoolStats)) {
        for arena in self.arenas.iter() {
            let address = arena.address().addr().get();
            let mut unit = 1;
            while unit <= arena.units() {
                let pool = arena.pool(unit);
                let is_resident = arena.resident_mask() >> unit & 1 == 1;
                let (bytes, contents) = match pool.class() {
                    Some(class) => {
                        let (size, capacity) = (class.size(), class.blocks_per_pool());
                        let in_use = pool.live_blocks();
                        (class.pool_bytes(), PoolContents::Blocks { size, in_use, capacity })
                    }
                    None => (POOL_BYTES, PoolContents::Free { is_resident }),
                };
                let offset = arena.unit_address(unit).addr().get() - address;
                f(PoolStats { arena: address, offset, bytes, contents });
                unit += bytes / POOL_BYTES;
            }
        }
    }
}
