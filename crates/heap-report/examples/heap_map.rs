//! Draws the heap of a program that has freed nine blocks of ten, as `text` (or `json` or `svg`, the first argument).

use heap_report::{Json, Snapshot, Svg, Text};
use malloc_api::{LibcMalloc, Malloc};
use pymalloc_core::LocalPymalloc;

fn main() {
    let heap = LocalPymalloc::new(LibcMalloc);
    let blocks: Vec<_> = (0..20_000).map(|index| heap.malloc(1 + index % 500)).collect();
    let kept = |index: usize| index < 5_000 || index % 10 == 0;
    for (_, block) in blocks.iter().enumerate().filter(|(index, _)| !kept(*index)) {
        // SAFETY: live, and not used again.
        unsafe { heap.free(*block) };
    }

    let snapshot = Snapshot::of_pymalloc("after the frees", |visit| heap.for_each_pool(visit));
    assert_eq!(snapshot.totals().blocks, heap.allocated_blocks());
    match std::env::args().nth(1).as_deref() {
        Some("json") => println!("{}", Json(&snapshot)),
        Some("svg") => print!("{}", Svg(&snapshot)),
        _ => print!("{}", Text(&snapshot)),
    }

    for (_, block) in blocks.iter().enumerate().filter(|(index, _)| kept(*index)) {
        // SAFETY: live, and not used again.
        unsafe { heap.free(*block) };
    }
}
