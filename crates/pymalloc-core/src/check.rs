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
        let mut out = 0;
        let mut bytes_out = 0;
        for arena in self.arenas.iter() {
            let (free, resident) = (arena.free_mask(), arena.resident_mask());
            assert_eq!(resident & !free, 0, "arena invariant 2");
            assert_eq!(
                arena.open_units().count() + arena.free_pools(),
                arena.pools(),
                "arena invariant 1"
            );
            for unit in arena.open_units() {
                let pool = arena.pool(unit);
                pool.check();
                let class = pool.class().expect("an open pool has a class");
                assert_eq!(
                    class.geometry().units as usize,
                    arena.kind().units(),
                    "a pool's class fits its arena"
                );
                assert_eq!(
                    pool.base(),
                    arena.unit_address(unit).as_ptr(),
                    "a pool begins at its unit"
                );
                for part in unit..unit + arena.kind().units() {
                    let address = arena.unit_address(part).addr().get();
                    assert_eq!(self.map.class_of(address), Some(class), "address map invariant 1");
                }
                let blocks = class.blocks_per_pool();
                assert!(
                    pool.free_blocks() < blocks,
                    "used pools invariant 1: an empty pool is open"
                );
                pools[class.index()] += 1;
                listed[class.index()] += u32::from(pool.free_blocks() > 0);
                out += blocks - pool.free_blocks();
                bytes_out += (blocks - pool.free_blocks()) * class.size();
            }
            let mut units = free;
            while units != 0 {
                let unit = units.trailing_zeros() as usize;
                units &= units - 1;
                let address = arena.unit_address(unit).addr().get();
                assert_eq!(self.map.class_of(address), None, "address map invariant 1: closed");
            }
        }
        assert_eq!(out, self.blocks_out, "blocks out of their pools");
        assert_eq!(bytes_out, self.bytes_out, "bytes out of their pools");
        assert_eq!(pools, self.pools, "open pools of each class");
        for class in SizeClass::all() {
            for pool in self.used.iter(class) {
                assert_eq!(pool.class(), Some(class), "used pools invariant 1: class");
                assert!(pool.free_blocks() > 0, "used pools invariant 1: a full pool is listed");
                listed[class.index()] -= 1;
                assert!(pool.next().is_none_or(|next| next.prev() == Some(pool)), "list links");
            }
            self.check_magazine(class);
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

    /// Asserts magazine invariant 1 for `class`, and that no block is in it twice or also free in its pool.
    fn check_magazine(&self, class: SizeClass) {
        let blocks = self.magazines.blocks(class);
        assert!(blocks.len() <= self.magazines.limit(class), "magazine invariant 1: room");
        for (index, block) in blocks.iter().enumerate() {
            let address = block.addr();
            assert_eq!(self.map.class_of(address), Some(class), "magazine invariant 1: class");
            // SAFETY: it has a class.
            let arena = unsafe { self.map.arena_of_block(address) };
            let unit = arena.unit_of(address).expect("a block is in a unit of its arena");
            let pool = arena.pool(arena.pool_unit(unit));
            let offset = address - pool.base().addr();
            assert_eq!(offset % class.size(), 0, "magazine invariant 1: begins a block");
            assert!(
                !pool.is_free(class.geometry().block_at(offset)),
                "pool invariant 4: a block is in its magazine and free in its pool"
            );
            assert!(!blocks[..index].contains(block), "a block is in its magazine twice");
        }
    }
}
