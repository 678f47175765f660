//! Owns the way back of memory in arenas that stay: which free pools and pages go back to the system, and in which order.
//! Leaves whole arenas to `stock.rs`.

use core::ptr::NonNull;

use crate::arena::ArenaPtr;
use crate::arenas::Arenas;
use crate::config::{PAGE_BYTES, POOL_BYTES};
use crate::header::beside_header;
use crate::source::ArenaSource;

/// Purges free pools until at most `target` bytes of them are resident, those of the emptiest arenas first; returns the
/// bytes that went back.
pub(crate) fn purge_free_pools(
    arenas: &mut Arenas,
    source: &impl ArenaSource,
    target: usize,
) -> usize {
    let mut bytes = 0;
    while arenas.resident_free_bytes() > target {
        let resident = |arena: &ArenaPtr| arena.is_from_source() && arena.resident_mask() != 0;
        let Some(arena) = arenas.emptiest_first().find(resident) else { break };
        let mask = arena.resident_mask();
        let mut units = source.take_back(arena.address(), mask);
        let first_unit = arena.unit_address(0);
        while units != 0 {
            // Neighbours go back in one call.
            let first = units.trailing_zeros() as usize;
            let count = (units >> first).trailing_ones() as usize;
            units &= units.wrapping_add(1 << first);
            for part in beside_header(
                first_unit.addr().get(),
                first * POOL_BYTES,
                (first + count) * POOL_BYTES,
            ) {
                // SAFETY: in the arena's units.
                let start = unsafe { first_unit.add(part.start) };
                // SAFETY: 1: free units of an arena that the source made, without its header: nothing in them is in use.
                bytes += unsafe { source.purge(start, part.len()) };
            }
        }
        arenas.set_purged(arena, mask);
    }
    bytes
}

/// Purges the pages of open pools that hold no live block; returns the bytes that went back.
pub(crate) fn purge_free_pages(arenas: &Arenas, source: &impl ArenaSource) -> usize {
    let mut bytes = 0;
    for arena in arenas.iter().filter(|arena| arena.is_from_source()) {
        for unit in arena.open_units() {
            let pool = arena.pool(unit);
            let Some(class) = pool.class() else { continue };
            // The links in free blocks go with the pages.
            pool.make_idle();
            let start = arena.unit_address(unit);
            let mut from = 0;
            let mut block = usize::from(class.geometry().start);
            for index in 0..class.blocks_per_pool() {
                if !pool.is_idle(class, index) {
                    bytes += purge_between(source, start, from, block);
                    from = block + class.size();
                }
                block += class.size();
            }
            bytes += purge_between(source, start, from, class.pool_bytes());
        }
    }
    bytes
}

/// Purges the whole pages from `from` to `to`, offsets into the pool at `start` between which no block lives.
fn purge_between(source: &impl ArenaSource, start: NonNull<u8>, from: usize, to: usize) -> usize {
    if to - from < PAGE_BYTES {
        return 0;
    }
    // SAFETY: `from` is below the pool's length, which is mapped.
    let first = unsafe { start.add(from) };
    // SAFETY: 1: in an arena that the source made; no live block in the range, and free blocks hold nothing.
    unsafe { source.purge(first, to - from) }
}
