//! Threads with pools of their own, and a process that forks meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};

use malloc_api::testing::{alone, forked};
use malloc_api::{LibcMalloc, Malloc};
use pymalloc_core::LocalPymalloc;

/// Gets some arenas and gives them back.
fn live() {
    let alloc = LocalPymalloc::new(LibcMalloc);
    let blocks: Vec<_> = (0..400).map(|_| alloc.malloc(8_000).expect("memory")).collect();
    for block in blocks {
        // SAFETY: live, and not used again.
        unsafe { alloc.free(Some(block)) };
    }
    assert_eq!(alloc.allocated_blocks(), 0);
}

/// The child finds the region unlocked and whole, whatever the parent's threads were doing.
#[test]
fn a_child_gets_arenas_while_its_parents_threads_do() {
    alone("forks::a_child_gets_arenas_while_its_parents_threads_do", || {
        static IS_OVER: AtomicBool = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !IS_OVER.load(Ordering::Relaxed) {
                        live();
                    }
                });
            }
            // SAFETY: 1: the child calls what may follow a fork.
            let ends = (0..60).map(|_| unsafe { forked(live) }.1);
            let other = ends.into_iter().find(|end| !end.success());
            IS_OVER.store(true, Ordering::Relaxed);
            assert_eq!(other, None, "how the first child ended that hung, of 60");
        });
    });
}
