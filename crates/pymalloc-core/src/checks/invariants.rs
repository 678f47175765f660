//! Owns the walk that asserts every numbered invariant of an allocator. Leaves the invariants of one pool, one list and the
//! order of arenas to the `check` of their types.

use crate::config::ARENA_BYTES;
use crate::depot::Depot;
use crate::size_class::SizeClass;
use crate::source::ArenaSource;
use crate::stats::Stats;
use crate::stock::Stock;
use crate::used_pools::UsedPools;

/// Compares every structure of an allocator with every other.
///
/// # Panics
///
/// If an invariant does not hold; the message names the invariant.
pub(crate) fn check(stock: &Stock<impl ArenaSource>, used: &UsedPools, depot: &Depot, key: u32) {
    let Stock { arenas, map, open_bytes, .. } = stock;
    arenas.check();
    let mut listed = [0; SizeClass::COUNT];
    let mut bytes = 0;
    for arena in arenas.iter() {
        let free = arena.free_mask();
        assert_eq!(arena.resident_mask() & !free, 0, "arena invariant 2");
        let class_at = |unit| map.class_of(arena.unit_address(unit).addr().get());
        let mut units = (0..arena.units()).filter(|unit| free >> unit & 1 == 1).count();
        for unit in arena.open_units() {
            let pool = arena.pool(unit);
            pool.check();
            let class = pool.class().expect("an open pool has a class");
            assert_eq!(pool.base(), arena.unit_address(unit), "a pool begins at its unit");
            let end = unit + usize::from(class.geometry().units);
            units += end - unit;
            for part in unit..end {
                assert_eq!(free >> part & 1, 0, "arena invariant 1: a part of a pool");
                assert_eq!(class_at(part), Some(class), "address map invariant 1");
            }
            let full = pool.live_blocks() == pool.capacity(class);
            let is_used = pool.has_key(key);
            let is_first = used.first(class, pool.lane()) == Some(pool);
            assert!(is_used || full, "pool invariant 1: a pool with free blocks is not used");
            assert!(
                !full || !is_used || is_first,
                "used pools invariant 1: a full pool is listed that is not its class's first"
            );
            assert!(
                pool.live_blocks() > 0 || is_first,
                "used pools invariant 1: an empty pool is open that is not its class's first"
            );
            listed[class.index()] += usize::from(is_used);
            bytes += class.pool_bytes();
        }
        assert_eq!(units, arena.units(), "arena invariant 1: each unit is free or a pool's");
        for unit in (0..64).filter(|unit| free >> unit & 1 == 1) {
            assert_eq!(class_at(unit), None, "address map invariant 1: closed");
        }
    }
    assert_eq!(bytes, *open_bytes, "bytes of open pools");
    for class in SizeClass::all() {
        let count = used.check(class, key);
        assert_eq!(listed[class.index()], count, "used pools invariant 1: complete");
    }
    let stats = Stats::count(arenas, map, depot, 0);
    assert_eq!(stats.total_bytes(), stats.arenas_current * ARENA_BYTES, "the statistics add up");
}
