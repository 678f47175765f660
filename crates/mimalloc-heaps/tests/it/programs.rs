//! Any program of operations, checked by the shadow model, through heaps of several kinds.

use malloc_trace::{generate, run_domains};
use mimalloc_heaps::{HeapKind, InterpreterHeaps, MiMalloc, ThreadMalloc};
use proptest::prelude::*;

use crate::visit::blocks_of;

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_program_keeps_its_blocks(bytes in prop::collection::vec(any::<u8>(), 0..6000)) {
        let ops = generate::ops_from_bytes(&bytes, 200, 100_000);
        let interpreter = InterpreterHeaps::new().unwrap();
        let heaps = interpreter.attach().unwrap();
        heaps.enter(|| {
            let domains: [&dyn malloc_api::Malloc; 3] =
                [&MiMalloc, &ThreadMalloc::MEM, &ThreadMalloc::OBJECT];
            run_domains(&ops, domains).unwrap();
        });
        // The program's end frees everything, so nothing may be left.
        prop_assert_eq!(HeapKind::ALL.map(|kind| blocks_of(&interpreter, kind)), [0; 4]);
    }
}
