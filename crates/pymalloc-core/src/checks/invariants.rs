//! Owns the walk that asserts every numbered invariant of the crate.

use malloc_api::Malloc;

use crate::pymalloc::Pymalloc;
use crate::size_class::SizeClass;
use crate::source::ArenaSource;

impl<R: Malloc, S: ArenaSource> Pymalloc<R, S> {
    /// Walks every structure and compares it with every other.
    ///
    /// # Panics
    ///
    /// If an invariant does not hold; the message names it.
    pub fn check_invariants(&self) {
        self.arenas.check();
        let mut pools = [0; SizeClass::COUNT];
        let mut listed = [0; SizeClass::COUNT];
        let mut open_bytes = 0;
        for arena in self.arenas.iter() {
            let (free, resident) = (arena.free_mask(), arena.resident_mask());
            assert_eq!(resident & !free, 0, "arena invariant 2");
            let mut open_units = free.count_ones() as usize;
            for unit in arena.open_units() {
                let pool = arena.pool(unit);
                pool.check();
                let class = pool.class().expect("an open pool has a class");
                assert_eq!(pool.base(), arena.unit_address(unit), "a pool begins at its unit");
                let end = unit + usize::from(class.geometry().units);
                open_units += end - unit;
                for part in unit..end {
                    assert_eq!(free >> part & 1, 0, "arena invariant 1: a part of a pool");
                    let address = arena.unit_address(part).addr().get();
                    assert_eq!(self.map.class_of(address), Some(class), "address map invariant 1");
                }
                let full = pool.live_blocks() == class.blocks_per_pool();
                let used = pool.has_key(self.key);
                assert!(used || full, "pool invariant 1: a pool with free blocks is not used");
                assert!(
                    !full || !used || self.used.first(class) == Some(pool),
                    "used pools invariant 1: a full pool is listed that is not its class's first"
                );
                assert!(
                    pool.live_blocks() > 0 || self.used.first(class) == Some(pool),
                    "used pools invariant 1: an empty pool is open that is not its class's first"
                );
                pools[class.index()] += 1;
                listed[class.index()] += u32::from(used);
                open_bytes += class.pool_bytes();
            }
            assert_eq!(
                open_units,
                arena.units(),
                "arena invariant 1: each unit is free or a pool's"
            );
            let mut units = free;
            while units != 0 {
                let unit = units.trailing_zeros() as usize;
                units &= units - 1;
                let address = arena.unit_address(unit).addr().get();
                assert_eq!(self.map.class_of(address), None, "address map invariant 1: closed");
            }
        }
        assert_eq!(open_bytes, self.open_bytes, "bytes of open pools");
        assert_eq!(pools, self.pools, "open pools of each class");
        for class in SizeClass::all() {
            for pool in self.used.iter(class) {
                assert_eq!(pool.class(), Some(class), "used pools invariant 1: class");
                assert!(pool.has_key(self.key), "used pools invariant 1: key");
                listed[class.index()] -= 1;
                assert!(pool.next().is_none_or(|next| next.prev() == Some(pool)), "list links");
            }
        }
        assert_eq!(listed, [0; SizeClass::COUNT], "used pools invariant 1: complete");
        let stats = self.stats();
        assert_eq!(
            stats.total_bytes(),
            stats.arenas_current * crate::ARENA_BYTES,
            "the statistics add up"
        );
        assert_eq!(stats.allocated_blocks(), self.allocated_blocks(), "allocated blocks");
    }
}
