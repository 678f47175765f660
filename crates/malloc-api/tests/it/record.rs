//! `AllocatorRecord`: a Rust allocator behind C functions and back, and what C may not hand in.

use std::ptr::NonNull;

use malloc_api::testing::{Counting, conformance};
use malloc_api::{
    AllocatorRecord, LibcMalloc, MAX_REQUEST, Malloc, PyMemAllocatorEx, RecordError, ThreadSafety,
};

#[test]
fn a_record_keeps_the_contract_and_frees_what_it_takes() {
    let counting: &'static Counting<LibcMalloc> = malloc_api::immortal::leak(Counting::default());
    conformance(&AllocatorRecord::new(counting));
    assert_eq!(counting.counts().live_blocks, 0);
    conformance(&AllocatorRecord::leak(Counting::new(LibcMalloc)));
}

#[test]
fn a_record_refuses_large_requests_before_they_reach_the_allocator() {
    let counting = malloc_api::immortal::leak(Counting::new(LibcMalloc));
    let record = AllocatorRecord::new(counting);
    assert!(record.malloc(MAX_REQUEST + 1).is_none());
    assert!(record.calloc(usize::MAX, 2).is_none());
    // SAFETY: (1) there is no block; (2) none was made.
    assert!(unsafe { record.realloc(None, MAX_REQUEST + 1) }.is_none());
    assert_eq!(counting.counts().calls(), 0);
}

#[test]
fn a_record_survives_the_way_through_c() {
    static LIBC: LibcMalloc = LibcMalloc;
    let record = AllocatorRecord::new(&LIBC);
    // SAFETY: the words of a record (1 and 2), whose functions any thread may call (3).
    let back = unsafe { AllocatorRecord::from_c(record.to_c(), ThreadSafety::AnyThread) };
    assert_eq!(back, Ok(record));
    assert_eq!(NonNull::new(record.ctx()), NonNull::new((&raw const LIBC).cast_mut().cast()));
}

#[test]
fn a_missing_function_and_a_function_for_one_thread_are_refused() {
    static LIBC: LibcMalloc = LibcMalloc;
    let c = AllocatorRecord::new(&LIBC).to_c();
    let from_c = |c, threads| {
        // SAFETY: the words of a record (1 and 2), or refused; what is said of threads is true or refused (3).
        unsafe { AllocatorRecord::from_c(c, threads) }
    };
    let missing = [
        ("malloc", PyMemAllocatorEx { malloc: None, ..c }),
        ("calloc", PyMemAllocatorEx { calloc: None, ..c }),
        ("realloc", PyMemAllocatorEx { realloc: None, ..c }),
        ("free", PyMemAllocatorEx { free: None, ..c }),
        ("malloc", PyMemAllocatorEx::NULL),
    ];
    for (name, c) in missing {
        let refused = from_c(c, ThreadSafety::AnyThread);
        assert_eq!(refused, Err(RecordError::NullFunction(name)));
    }
    assert_eq!(from_c(c, ThreadSafety::OneAtATime), Err(RecordError::NotThreadSafe));
}

#[test]
fn a_value_of_no_bytes_lives_for_ever_too() {
    assert_eq!(malloc_api::immortal::leak(()), &());
    assert_eq!(malloc_api::immortal::leak([7_u64; 3]), &[7; 3]);
}
