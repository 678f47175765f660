//! Owns how memory comes behind a pool that opens: page by page, some of it ahead, or a huge page where it had gone. Leaves to
//! `release.rs` how it goes.

use core::ops::Range;

use crate::arena::ArenaPtr;
use crate::arenas::Arenas;
use crate::config::{ARENA_BYTES, POOL_BYTES};
use crate::policy::{Kept, POPULATE_BYTES};
use crate::source::ArenaSource;

/// Brings memory in behind `units` of `arena`, which a pool has just got; `missing` bytes of them have none.
pub(crate) fn supply(
    arenas: &mut Arenas,
    kept: &mut Kept,
    source: &impl ArenaSource,
    arena: ArenaPtr,
    units: Range<usize>,
    missing: usize,
) {
    if !arena.is_hasty() {
        kept.needed(missing);
        return;
    }
    kept.missed(missing, arenas.peak() * ARENA_BYTES);
    let behind = arena.absent_mask().checked_shr(units.end as u32).unwrap_or(0);
    let more = (behind.trailing_ones() as usize).min(POPULATE_BYTES / POOL_BYTES - units.len());
    let bytes = (units.len() + more) * POOL_BYTES;
    // SAFETY: 1: free units of this arena, which the source made.
    unsafe { source.populate(arena.unit_address(units.start), bytes) };
    come(arenas, source, arena, ((1 << more) - 1) << (units.end % 64));
}

/// Has the source bring in all that `arena` and its `neighbour` lack, beside `missing` bytes of a pool that opens: is it there?
pub(crate) fn regrow(
    arenas: &mut Arenas,
    kept: &mut Kept,
    source: &impl ArenaSource,
    arena: ArenaPtr,
    neighbour: Option<ArenaPtr>,
    missing: usize,
) -> bool {
    let both = [Some(arena), neighbour];
    let masks = both.map(|arena| arena.map_or(0, ArenaPtr::absent_mask));
    let bytes = masks.iter().map(|mask| mask.count_ones() as usize * POOL_BYTES).sum::<usize>();
    if !kept.may_regrow(bytes + missing)
        || !both.into_iter().flatten().all(ArenaPtr::is_from_source)
        // SAFETY: 1: the neighbour is the other one of the two, and one of this allocator.
        || !unsafe { source.regrow(arena.address(), neighbour.is_some()) }
    {
        return false;
    }
    kept.needed(bytes + missing);
    for (arena, mask) in both.into_iter().flatten().zip(masks) {
        come(arenas, source, arena, mask);
    }
    true
}

/// Notes that the free units of `mask` have come ahead of need: they may go again.
fn come(arenas: &mut Arenas, source: &impl ArenaSource, arena: ArenaPtr, mask: u64) {
    arenas.set_resident(arena, mask);
    // SAFETY: 1: free units of an arena of the source.
    unsafe { source.offer(arena.address(), mask, 0) };
}
