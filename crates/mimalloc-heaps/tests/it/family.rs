//! The malloc contract, through every face of the crate.

use malloc_api::{Malloc, testing};
use mimalloc_heaps::{HeapKind, InterpreterHeaps, MiMalloc, ThreadMalloc};
use rstest::rstest;

use crate::visit::kind_of;

#[test]
fn plain_mimalloc_keeps_the_contract() {
    testing::conformance(&MiMalloc);
}

#[rstest]
#[case(ThreadMalloc::MEM)]
#[case(ThreadMalloc::OBJECT)]
#[case(ThreadMalloc::GC)]
#[case(ThreadMalloc::GC_PRE)]
#[case(ThreadMalloc::CURRENT)]
fn the_calling_threads_heaps_keep_the_contract(#[case] malloc: ThreadMalloc) {
    testing::conformance(&malloc);
}

#[test]
fn blocks_know_their_kind() {
    let interpreter = InterpreterHeaps::new().unwrap();
    let heaps = interpreter.attach().unwrap();
    for kind in HeapKind::ALL {
        let block = heaps.malloc(kind, 24).unwrap();
        assert_eq!(kind_of(&interpreter, block), Some(kind));
        // SAFETY: (1) live and (2) not used afterwards.
        unsafe { heaps.free(Some(block)) };
    }
    let foreign = MiMalloc.malloc(24).unwrap();
    assert_eq!(kind_of(&interpreter, foreign), None);
    // SAFETY: (1) live and (2) not used afterwards.
    unsafe { MiMalloc.free(Some(foreign)) };
}
