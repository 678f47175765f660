//! A program of operations on the pool allocator, with the shadow model beside it and every invariant walked after it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use malloc_api::LibcMalloc;
use malloc_trace::{ShadowModel, generate::ops_from_bytes};
use pymalloc_core::{LocalPymalloc, ReleaseLevel};

fuzz_target!(|bytes: &[u8]| {
    let pool = LocalPymalloc::new(LibcMalloc);
    let ops = ops_from_bytes(bytes, 64, 1 << 16);
    let mut model = ShadowModel::new([&pool; 3]);
    for (index, &op) in ops.iter().enumerate() {
        model.step(op).unwrap_or_else(|fault| panic!("operation {index}, {op}: {fault}"));
        if index % 64 == 63 {
            pool.release(ReleaseLevel::Pages);
            pool.check_invariants();
        }
    }
    pool.check_invariants();
    model.free_all().unwrap_or_else(|fault| panic!("at the end: {fault}"));
    assert_eq!(pool.allocated_blocks(), 0, "blocks are counted as live after all were freed");
    pool.check_invariants();
});
