//! The walk over pools sees what the counts say, in every kind of arena, whoever shares the allocator.

use std::collections::BTreeMap;
use std::ptr::NonNull;

use malloc_api::annotate::RED_ZONE_BYTES;
use malloc_api::{LibcMalloc, Malloc};
use pymalloc_core::{
    ARENA_BYTES, LocalPymalloc, LockedPymalloc, MmapArenas, NoFallback, POOL_BYTES, PoolContents,
    PoolStats, ReleaseLevel, SerializedPymalloc, StaticArenas, Stats,
};

/// Checks a walk against the counts taken at the same time: by class, and over all.
fn compare(pools: &[PoolStats], stats: &Stats) {
    let mut arenas: BTreeMap<usize, Vec<&PoolStats>> = BTreeMap::new();
    for pool in pools {
        arenas.entry(pool.arena).or_default().push(pool);
    }
    assert_eq!(arenas.len(), stats.arenas_current);
    for pools in arenas.values() {
        let neighbours = pools.windows(2);
        // The records are in the first pool.
        let end = |pool: &PoolStats| pool.offset + pool.bytes.next_multiple_of(POOL_BYTES);
        neighbours.for_each(|pair| assert_eq!(end(pair[0]), pair[1].offset));
        let end = pools.last().map(|pool| pool.offset + pool.bytes);
        assert!(end <= Some(ARENA_BYTES));
        assert!(pools.iter().all(|pool| (pool.arena + pool.offset) % POOL_BYTES == 0));
    }
    let blocks = |pool: &&PoolStats| match pool.contents {
        PoolContents::Blocks { size, in_use, capacity } => Some((size, in_use, capacity)),
        PoolContents::Free { .. } => None,
    };
    for class in &stats.classes {
        let of_class = pools.iter().filter_map(|pool| blocks(&pool));
        let of_class: Vec<_> = of_class.filter(|(size, ..)| *size == class.size).collect();
        assert_eq!(of_class.len(), class.pools, "pools of {} bytes", class.size);
        let in_use: usize = of_class.iter().map(|(_, in_use, _)| in_use).sum();
        let capacity: usize = of_class.iter().map(|(.., capacity)| capacity).sum();
        assert_eq!(in_use, class.blocks_in_use, "blocks of {} bytes", class.size);
        assert_eq!(capacity - in_use, class.blocks_available, "blocks of {} bytes", class.size);
    }
    let free = pools.iter().filter(|pool| matches!(pool.contents, PoolContents::Free { .. }));
    assert_eq!(free.map(|pool| pool.bytes).sum::<usize>(), stats.unused_pools * POOL_BYTES);
    let bytes: usize = pools.iter().map(|pool| pool.bytes).sum();
    assert_eq!(
        bytes + stats.header_bytes + stats.alignment_bytes,
        stats.arenas_current * ARENA_BYTES
    );
}

fn resident_free(pools: &[PoolStats]) -> usize {
    let resident = |pool: &&PoolStats| pool.contents == PoolContents::Free { is_resident: true };
    pools.iter().filter(resident).count()
}

/// Sizes of classes of both kinds of pools, and frees that leave holes and whole pools.
fn fill(alloc: &impl Malloc) -> Vec<NonNull<u8>> {
    let blocks: Vec<_> = (0..30_000).map(|i| alloc.malloc(1 + i * 7 % 3000).unwrap()).collect();
    let (freed, kept) = blocks.split_at(20_000);
    // SAFETY: live, and not used again.
    freed.iter().for_each(|block| unsafe { alloc.free(Some(*block)) });
    kept.to_vec()
}

macro_rules! walk {
    ($alloc:expr) => {{
        let mut pools = Vec::new();
        $alloc.for_each_pool(|pool| pools.push(pool));
        pools
    }};
}

#[test]
fn a_local_allocators_pools_add_up() {
    let alloc = LocalPymalloc::new(LibcMalloc);
    assert_eq!(walk!(alloc), []);
    let blocks = fill(&alloc);
    let table = alloc.stats().map_bytes[1];
    assert!(
        (4096..1 << 20).contains(&table),
        "a byte for each pool of the span, in pages: {table}"
    );
    let pools = walk!(alloc);
    compare(&pools, &alloc.stats());
    assert!(resident_free(&pools) > 0, "freed pools stay hot");
    alloc.release(ReleaseLevel::Pools);
    let pools = walk!(alloc);
    compare(&pools, &alloc.stats());
    assert_eq!(resident_free(&pools), 0);
    // SAFETY: live, and not used again.
    blocks.iter().for_each(|block| unsafe { alloc.free(Some(*block)) });
    compare(&walk!(alloc), &alloc.stats());
}

#[test]
fn a_locked_allocators_pools_add_up() {
    static ALLOC: LockedPymalloc<LibcMalloc, MmapArenas> = LockedPymalloc::new(LibcMalloc);
    let blocks = fill(&ALLOC);
    compare(&walk!(ALLOC), &ALLOC.stats());
    // SAFETY: live, and not used again.
    blocks.iter().for_each(|block| unsafe { ALLOC.free(Some(*block)) });
    // With free blocks in magazines, where there are any.
    let kept = ALLOC.cached().map(fill);
    compare(&walk!(ALLOC), &ALLOC.stats());
    // SAFETY: live, and not used again.
    kept.into_iter().flatten().for_each(|block| unsafe { ALLOC.free(Some(block)) });
}

#[test]
fn a_serialized_allocators_pools_add_up() {
    // SAFETY: 1: this thread alone calls.
    let alloc = unsafe { SerializedPymalloc::new(LibcMalloc) };
    let blocks = fill(&alloc);
    compare(&walk!(alloc), &alloc.stats());
    // SAFETY: live, and not used again.
    blocks.iter().for_each(|block| unsafe { alloc.free(Some(*block)) });
    compare(&walk!(alloc), &alloc.stats());
}

/// What a walk calls may use the allocator: arenas stay until the walk ends, also when the call panics.
macro_rules! change_in_walk {
    ($alloc:expr) => {{
        let alloc = $alloc;
        let mut blocks = fill(&alloc);
        let arenas = alloc.stats().arenas_current;
        let mut pools = 0;
        alloc.for_each_pool(|_| {
            for block in blocks.drain(..) {
                // SAFETY: live, and not used again.
                unsafe { alloc.free(Some(block)) };
            }
            assert_eq!(alloc.release(ReleaseLevel::Arenas), 0, "no arena goes during a walk");
            alloc.check_invariants();
            // SAFETY: live, and not used again.
            unsafe { alloc.free(alloc.malloc(5_000)) };
            pools += 1;
        });
        assert!(pools >= 62 * arenas - 40, "{pools} pools of {arenas} arenas");
        let panics = std::panic::AssertUnwindSafe(|| alloc.for_each_pool(|_| panic!("on purpose")));
        assert!(std::panic::catch_unwind(panics).is_err());
        assert!(alloc.release(ReleaseLevel::Arenas) >= arenas * ARENA_BYTES);
        alloc.check_invariants();
    }};
}

#[test]
fn a_walk_may_change_what_it_walks_over() {
    change_in_walk!(LocalPymalloc::new(LibcMalloc));
    // SAFETY: 1: this thread alone calls.
    change_in_walk!(unsafe { SerializedPymalloc::new(LibcMalloc) });
}

#[test]
fn pools_of_an_arena_at_any_address_are_found_at_their_blocks() {
    static BUFFER: StaticArenas<2> = StaticArenas::new();
    let alloc = LocalPymalloc::with_source(NoFallback, &BUFFER);
    let block = alloc.malloc(48 - RED_ZONE_BYTES).unwrap();
    let pools = walk!(alloc);
    compare(&pools, &alloc.stats());
    let has_it = |pool: &&PoolStats| {
        matches!(pool.contents, PoolContents::Blocks { size: 48, in_use: 1, .. })
    };
    let pool = pools.iter().find(has_it).expect("the block's pool");
    let start = pool.arena + pool.offset;
    assert!((start..start + POOL_BYTES).contains(&block.addr().get()));
    // SAFETY: live, and not used again.
    unsafe { alloc.free(Some(block)) };
}
