//! Random programs of `malloc-trace` under its shadow model.

use malloc_api::annotate::RED_ZONE_BYTES;
use malloc_api::{LibcMalloc, Malloc};
use malloc_trace::run;
use proptest::prelude::*;
use pymalloc_core::{LocalPymalloc, LockedPymalloc, NoFallback, OwnedPymalloc, StaticArenas};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn random_traces_run_clean(seed in any::<u64>(), max in 1_usize..20_000) {
        let ops = malloc_trace::generate::random(seed, 2_000, max);
        let local = LocalPymalloc::new(LibcMalloc);
        run(&ops, &local).unwrap();
        local.check_invariants();
        let locked = LockedPymalloc::new(LibcMalloc);
        run(&ops, &locked).unwrap();
        locked.check_invariants();
        let owned = OwnedPymalloc::new(LibcMalloc);
        run(&ops, &owned).unwrap();
        owned.check_invariants();
    }
}

static BUFFER: StaticArenas<4> = StaticArenas::new();

#[test]
fn a_static_buffer_serves_until_it_is_full_and_again() {
    let alloc = LocalPymalloc::with_source(NoFallback, &BUFFER);
    for _ in 0..2 {
        let mut live = Vec::new();
        while let Some(block) = alloc.malloc(200 - RED_ZONE_BYTES) {
            // SAFETY: a live block of this size.
            unsafe { block.write_bytes(0x5A, 200 - RED_ZONE_BYTES) };
            live.push(block);
        }
        let blocks = 3 * (64 * (16_384 / 208) - 4096 / 208);
        assert!((blocks - 6..blocks).contains(&live.len()), "all but the records: {}", live.len());
        alloc.check_invariants();
        for block in live {
            // SAFETY: live, and forgotten.
            unsafe { alloc.free(Some(block)) };
        }
        alloc.check_invariants();
    }
}
