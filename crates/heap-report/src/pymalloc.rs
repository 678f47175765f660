//! Owns how pools of `pymalloc-core` become a snapshot. Leaves the walk to that crate.

use alloc::string::String;
use alloc::vec::Vec;

use pymalloc_core::{ARENA_BYTES, PoolContents, PoolStats};

use crate::collect::collect;
use crate::model::{Arena, Contents, Pool, Snapshot};

impl Snapshot {
    /// A snapshot of a pymalloc heap, whose `for_each_pool` is `walk`.
    ///
    /// Arenas are in the order of their addresses. What lies before an arena's first pool are records, its slack
    /// for alignment included. `walk` may be called several times; nothing is allocated meanwhile, so the heap may be the
    /// program's global allocator.
    ///
    /// # Examples
    ///
    /// ```
    /// use heap_report::{Snapshot, Text};
    /// use malloc_api::{LibcMalloc, Malloc};
    /// use pymalloc_core::LocalPymalloc;
    ///
    /// let heap = LocalPymalloc::new(LibcMalloc);
    /// let block = heap.malloc(100);
    /// let snapshot = Snapshot::of_pymalloc("demo", |visit| heap.for_each_pool(visit));
    /// assert_eq!(snapshot.totals().blocks, 1);
    /// print!("{}", Text(&snapshot));
    /// # // SAFETY: live, and not used again.
    /// # unsafe { heap.free(block) };
    /// ```
    #[must_use]
    pub fn of_pymalloc(name: impl Into<String>, walk: impl Fn(&mut dyn FnMut(PoolStats))) -> Self {
        let mut pools = collect(walk);
        pools.sort_unstable_by_key(|pool| (pool.arena, pool.offset));
        let arenas = pools.chunk_by(|left, right| left.arena == right.arena).map(arena);
        Self { name: name.into(), arenas: arenas.collect() }
    }
}

/// The arena of these pools, of which there is at least one.
fn arena(pools: &[PoolStats]) -> Arena {
    let first = pools[0];
    // The records may be within the first pool's unit.
    let records = pools.get(1).map_or(first.offset, |second| second.offset - first.bytes);
    let end = pools.iter().fold(records, |end, pool| end + pool.bytes);
    let mut row = Vec::with_capacity(pools.len() + 2);
    row.push(Pool { bytes: records, contents: Contents::Records });
    row.extend(pools.iter().map(|pool| Pool { bytes: pool.bytes, contents: contents(*pool) }));
    if end < ARENA_BYTES {
        row.push(Pool { bytes: ARENA_BYTES - end, contents: Contents::Unused });
    }
    Arena { address: first.arena, pools: row }
}

fn contents(pool: PoolStats) -> Contents {
    match pool.contents {
        PoolContents::Free { .. } => Contents::Unused,
        PoolContents::Blocks { size, in_use, capacity } => {
            Contents::Blocks { size, used: in_use, capacity }
        }
    }
}
