//! Snapshots of real pymalloc heaps.

use std::ptr::NonNull;

use heap_report::{Contents, Json, Snapshot, Svg, Text};
use malloc_api::{LibcMalloc, Malloc};
use pymalloc_core::{
    ARENA_BYTES, LocalPymalloc, LockedPymalloc, NoFallback, POOL_BYTES, PoolContents, PoolStats,
    StaticArenas,
};

/// A heap of small and medium classes with holes; the same calls each time.
fn fill(heap: &impl Malloc) -> Vec<NonNull<u8>> {
    let blocks: Vec<_> = (0..8_000).map(|i| heap.malloc(1 + i * 7 % 900).unwrap()).collect();
    let (freed, kept) = blocks.split_at(5_000);
    // SAFETY: live, and not used again.
    freed.iter().for_each(|block| unsafe { heap.free(Some(*block)) });
    kept.to_vec()
}

/// What `for_each_pool` visits of an arena whose pools, of `units` units, begin `first` bytes into it.
fn pools(
    arena: usize,
    first: usize,
    units: usize,
    count: usize,
) -> impl Iterator<Item = PoolStats> {
    let bytes = units * POOL_BYTES;
    (0..count).map(move |index| {
        let size = if units == 1 { 16 * (index + 1) } else { 1024 + 128 * index };
        let capacity = bytes / size;
        let contents = match index % 5 {
            3 => PoolContents::Free { is_resident: true },
            4 => PoolContents::Free { is_resident: false },
            _ => PoolContents::Blocks { size, in_use: capacity * index / count, capacity },
        };
        PoolStats { arena, offset: first + index * bytes, bytes, contents }
    })
}

#[test]
fn arenas_of_either_kind_have_their_golden_reports() {
    let snapshot = Snapshot::of_pymalloc("pymalloc", |visit| {
        // Medium pools in an arena with slack at both ends, then small ones; the later address is visited first.
        pools(0x7f00_0030_1000, POOL_BYTES * 4 + 0x3000, 4, 14).for_each(&mut *visit);
        pools(0x7f00_0010_0000, POOL_BYTES, 1, 63).for_each(visit);
    });
    crate::assert_golden("pymalloc.txt", &Text(&snapshot).to_string());
    crate::assert_golden("pymalloc.json", &Json(&snapshot).to_string());
    crate::assert_golden("pymalloc.svg", &Svg(&snapshot).to_string());
}

#[test]
fn a_snapshot_counts_what_the_allocator_counts() {
    let heap = LockedPymalloc::new(LibcMalloc);
    let blocks = fill(&heap);
    let (snapshot, stats) =
        (Snapshot::of_pymalloc("locked", |visit| heap.for_each_pool(visit)), heap.stats());
    let totals = snapshot.totals();
    assert_eq!(totals.blocks + stats.fallback_blocks, heap.allocated_blocks());
    assert_eq!(totals.block_bytes, stats.bytes_in_use());
    assert_eq!(totals.bytes, stats.arenas_current * ARENA_BYTES);
    for size in snapshot.sizes() {
        let class = stats.classes.iter().find(|class| class.size == size.size).unwrap();
        assert_eq!((class.pools, class.blocks_in_use), (size.pools, size.used));
        assert_eq!(class.blocks_in_use + class.blocks_available, size.capacity);
    }
    // SAFETY: live, and not used again.
    blocks.iter().for_each(|block| unsafe { heap.free(Some(*block)) });
}

#[test]
fn an_arena_at_any_address_is_a_row_without_gaps() {
    static BUFFER: StaticArenas<2> = StaticArenas::new();
    let heap = LocalPymalloc::with_source(NoFallback, &BUFFER);
    let block = heap.malloc(48);
    let snapshot = Snapshot::of_pymalloc("static", |visit| heap.for_each_pool(visit));
    let arena = &snapshot.arenas[0];
    assert_eq!(arena.pools[0].contents, Contents::Records);
    assert_eq!(arena.pools.iter().map(|pool| pool.bytes).sum::<usize>(), ARENA_BYTES);
    // SAFETY: live, and not used again.
    unsafe { heap.free(block) };
}

#[test]
fn a_heap_without_arenas_is_an_empty_snapshot() {
    let heap = LocalPymalloc::new(LibcMalloc);
    let snapshot = Snapshot::of_pymalloc("fresh", |visit| heap.for_each_pool(visit));
    assert_eq!(snapshot.arenas, []);
}
