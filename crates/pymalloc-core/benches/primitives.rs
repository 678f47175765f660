//! Each primitive alone, beside the C library's `malloc`.

use std::hint::black_box;
use std::ptr::NonNull;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use malloc_api::{LibcMalloc, Malloc};
use pymalloc_core::{LocalPymalloc, LockedPymalloc, OwnedPymalloc, ReleaseLevel};

fn pairs(c: &mut Criterion, name: &str, alloc: &impl Malloc) {
    let mut group = c.benchmark_group("malloc_free");
    for size in [16, 64, 512, 4096] {
        group.bench_function(BenchmarkId::new(name, size), |b| {
            b.iter(|| {
                let block = alloc.malloc(black_box(size));
                // SAFETY: `None` or live, and forgotten.
                unsafe { alloc.free(black_box(block)) };
            });
        });
    }
    group.finish();
}

fn batches(c: &mut Criterion, name: &str, alloc: &impl Malloc) {
    let mut blocks: Vec<Option<NonNull<u8>>> = Vec::with_capacity(10_000);
    c.bench_function(&format!("batch_10000/{name}"), |b| {
        b.iter(|| {
            blocks.extend((0..10_000).map(|index| alloc.malloc(16 + index % 496)));
            for block in blocks.drain(..) {
                // SAFETY: `None` or live, and forgotten.
                unsafe { alloc.free(block) };
            }
        });
    });
}

fn resizes(c: &mut Criterion, name: &str, alloc: &impl Malloc) {
    c.bench_function(&format!("realloc_growth/{name}"), |b| {
        b.iter(|| {
            let mut block = alloc.malloc(16);
            for step in 2..64 {
                // SAFETY: `None` or live; the result replaces it.
                block = unsafe { alloc.realloc(block, step * 16) };
            }
            // SAFETY: `None` or live, and forgotten.
            unsafe { alloc.free(block) };
        });
    });
}

fn all(c: &mut Criterion) {
    let local = LocalPymalloc::new(LibcMalloc);
    let locked = LockedPymalloc::new(LibcMalloc);
    let owned = OwnedPymalloc::new(LibcMalloc);
    pairs(c, "local", &local);
    pairs(c, "locked", &locked);
    pairs(c, "owned", &owned);
    pairs(c, "libc", &LibcMalloc);
    batches(c, "local", &local);
    batches(c, "libc", &LibcMalloc);
    resizes(c, "local", &local);
    resizes(c, "libc", &LibcMalloc);
    c.bench_function("release_pages", |b| {
        b.iter(|| {
            let block = local.malloc(100);
            // SAFETY: `None` or live, and forgotten.
            unsafe { local.free(block) };
            local.release(ReleaseLevel::Pages)
        });
    });
}

criterion_group!(benches, all);
criterion_main!(benches);
