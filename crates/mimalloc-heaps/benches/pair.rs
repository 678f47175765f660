//! What malloc and free of a block cost through a thread's own heaps, beside plain mimalloc in the same run.
#![allow(missing_docs, reason = "criterion writes the functions")]

use std::hint::black_box;
use std::ptr::NonNull;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use malloc_api::Malloc;
use mimalloc_heaps::{HeapKind, InterpreterHeaps, MiMalloc, ThreadMalloc};

/// Blocks that live at once.
const LIVE: [usize; 2] = [1, 1000];

/// Sizes from 16 to 512 bytes, as a program's objects have.
fn size(index: usize) -> usize {
    black_box(16 + 16 * (index * 7 % 32))
}

fn row<R>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    live: usize,
    malloc: impl Fn(usize) -> Option<R>,
    free: impl Fn(Option<R>),
) {
    let mut blocks: Vec<Option<R>> = Vec::with_capacity(live);
    group.bench_function(name, |bencher| {
        bencher.iter(|| {
            blocks.extend((0..live).map(|index| black_box(malloc(size(index)))));
            blocks.drain(..).for_each(&free);
        });
    });
}

fn malloc_and_free(criterion: &mut Criterion) {
    let interpreter = InterpreterHeaps::new().expect("heaps");
    let heaps = interpreter.attach().expect("heaps");
    for live in LIVE {
        let mut group = criterion.benchmark_group(format!("malloc and free, {live} live"));
        group.throughput(Throughput::Elements(live as u64));
        let malloc = |size| heaps.malloc(HeapKind::Object, size);
        // SAFETY: (1) live and (2) not used afterwards, here and below.
        row(&mut group, "ThreadHeaps", live, malloc, |block| unsafe { heaps.free(block) });
        let malloc = |size| ThreadMalloc::OBJECT.malloc(size);
        // SAFETY: as above.
        let free = |block| unsafe { ThreadMalloc::OBJECT.free(block) };
        row(&mut group, "ThreadMalloc", live, malloc, free);
        // SAFETY: as above.
        let free = |block| unsafe { MiMalloc.free(block) };
        row(&mut group, "MiMalloc", live, |size| MiMalloc.malloc(size), free);
        // SAFETY: no preconditions.
        let malloc = |size| NonNull::new(unsafe { libmimalloc_sys::mi_malloc(size) });
        let free = |block: Option<NonNull<_>>| {
            let block = block.map_or(core::ptr::null_mut(), NonNull::as_ptr);
            // SAFETY: null or a live block, not used afterwards.
            unsafe { libmimalloc_sys::mi_free(block) };
        };
        row(&mut group, "mi_malloc", live, malloc, free);
        group.finish();
    }
}

criterion_group!(benches, malloc_and_free);
criterion_main!(benches);
