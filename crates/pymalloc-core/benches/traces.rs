//! Recorded programs, each replayed whole: the pool allocator beside the C library's `malloc`.
//!
//! The traces are those of the workspace's benchmark, or those in the folder that `PYMEM_TRACES` names.

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use malloc_api::{LibcMalloc, Malloc};
use malloc_trace::{Replay, Trace};
use pymalloc_core::LocalPymalloc;

fn read(path: &Path) -> Option<Trace> {
    let bytes = std::fs::read(path).ok()?;
    match path.extension()?.to_str()? {
        "zst" => malloc_trace::decode(zstd::Decoder::new(bytes.as_slice()).ok()?).ok(),
        "trc" => malloc_trace::decode(bytes.as_slice()).ok(),
        _ => None,
    }
}

fn traces(c: &mut Criterion) {
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/../../bench/traces");
    let folder = std::env::var_os("PYMEM_TRACES").map_or_else(|| shipped.into(), PathBuf::from);
    let Ok(entries) = std::fs::read_dir(&folder) else {
        println!("no traces in {}: name a folder with PYMEM_TRACES", folder.display());
        return;
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let Some(trace) = read(&path) else { continue };
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut group = c.benchmark_group(name.split('.').next().unwrap_or_default());
        group.sample_size(10).throughput(Throughput::Elements(trace.ops.len() as u64));
        let mut replay = Replay::new(&trace.ops);
        let pools = LocalPymalloc::new(LibcMalloc);
        let rows: [(&str, &dyn Malloc); 2] = [("pymalloc", &pools), ("libc", &LibcMalloc)];
        for (row, allocator) in rows {
            group.bench_function(row, |b| {
                b.iter_custom(|passes| {
                    let mut pass = |_| {
                        let start = Instant::now();
                        let _live = replay.pass([black_box(allocator); 3]).expect("memory");
                        start.elapsed()
                    };
                    (0..passes).map(&mut pass).sum::<Duration>()
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, traces);
criterion_main!(benches);
