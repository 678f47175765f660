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

#[test]
fn kinds_have_the_names_of_reports() {
    let names: Vec<String> = HeapKind::ALL.iter().map(HeapKind::to_string).collect();
    assert_eq!(names, ["mem", "object", "gc", "gc_pre"]);
}

/// The first request of a thread makes its heap, whichever function it is.
#[test]
fn a_first_calloc_is_served_from_the_interpreters_heap() {
    let interpreter = InterpreterHeaps::new().unwrap();
    let heaps = interpreter.attach().unwrap();
    let block = heaps.calloc(HeapKind::Object, 4, 16).expect("64 bytes");
    assert_eq!(kind_of(&interpreter, block), Some(HeapKind::Object));
    // SAFETY: a live block of 64 bytes, which calloc has written.
    let bytes = unsafe { core::slice::from_raw_parts(block.as_ptr(), 64) };
    assert!(bytes.iter().all(|byte| *byte == 0));
    // SAFETY: (1) live and (2) not used afterwards.
    unsafe { heaps.free(Some(block)) };
}
