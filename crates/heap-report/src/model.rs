//! Owns the model of a heap of any allocator: arenas of pools, and counts of them.
//! Leaves reading an allocator to `pymalloc.rs` and `mimalloc.rs`, and drawing to `text.rs`, `json.rs` and `svg.rs`.

use alloc::string::String;
use alloc::vec::Vec;

/// A heap at one moment. All sizes are in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// What the heap is called in titles.
    pub name: String,
    /// Its arenas, in the order in which they are drawn.
    pub arenas: Vec<Arena>,
}

/// A stretch of address space that is divided into pools.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Arena {
    /// Where it begins.
    pub address: usize,
    /// Its pools in the order of their addresses, without gaps.
    pub pools: Vec<Pool>,
}

/// A stretch of an arena that holds blocks of one size, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    /// Its length.
    pub bytes: usize,
    /// What it is used for.
    pub contents: Contents,
}

/// What a pool is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contents {
    /// Nothing, and it may have no memory behind it.
    Unused,
    /// The allocator's own records.
    Records,
    /// Blocks of one size.
    Blocks {
        /// Bytes of a block.
        size: usize,
        /// Blocks handed out.
        used: usize,
        /// Blocks that fit.
        capacity: usize,
    },
}

/// What is counted over a whole snapshot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Arenas.
    pub arenas: usize,
    /// Pools with blocks, pools with records, and unused pools.
    pub pools: usize,
    /// Unused pools.
    pub unused_pools: usize,
    /// Bytes of all pools.
    pub bytes: usize,
    /// Blocks handed out.
    pub blocks: usize,
    /// Bytes of those blocks.
    pub block_bytes: usize,
}

/// What is counted of one block size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SizeTotals {
    /// Bytes of a block.
    pub size: usize,
    /// Pools with blocks of this size.
    pub pools: usize,
    /// Blocks handed out.
    pub used: usize,
    /// Blocks that fit in those pools.
    pub capacity: usize,
}

impl Snapshot {
    /// Counts over all arenas.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let mut totals = Totals { arenas: self.arenas.len(), ..Totals::default() };
        for pool in self.pools() {
            totals.pools += 1;
            totals.bytes += pool.bytes;
            match pool.contents {
                Contents::Unused => totals.unused_pools += 1,
                Contents::Records => {}
                Contents::Blocks { size, used, .. } => {
                    totals.blocks += used;
                    totals.block_bytes += used * size;
                }
            }
        }
        totals
    }

    /// Counts by block size, ascending; only sizes that have a pool.
    #[must_use]
    pub fn sizes(&self) -> Vec<SizeTotals> {
        let mut sizes: Vec<SizeTotals> = Vec::new();
        for pool in self.pools() {
            let Contents::Blocks { size, used, capacity } = pool.contents else { continue };
            let place = sizes.binary_search_by_key(&size, |totals| totals.size);
            let place = place.unwrap_or_else(|place| {
                sizes.insert(place, SizeTotals { size, ..SizeTotals::default() });
                place
            });
            sizes[place].pools += 1;
            sizes[place].used += used;
            sizes[place].capacity += capacity;
        }
        sizes
    }

    fn pools(&self) -> impl Iterator<Item = &Pool> {
        self.arenas.iter().flat_map(|arena| &arena.pools)
    }
}
