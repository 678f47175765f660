//! Threads with pools of their own, and a process that forks meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};

use malloc_api::testing::alone;
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
            let mut hung = 0;
            for _ in 0..60 {
                // SAFETY: the child calls what may follow a fork, and ends without unwinding.
                let child = unsafe { libc::fork() };
                if child == 0 {
                    // SAFETY: a child that hangs ends by the alarm.
                    unsafe { libc::alarm(5) };
                    live();
                    // SAFETY: the child ends here.
                    unsafe { libc::_exit(0) };
                }
                assert!(child > 0, "the system forks");
                let mut status = 0;
                // SAFETY: a child of ours, and a place for its status.
                assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
                hung += usize::from(status != 0);
            }
            IS_OVER.store(true, Ordering::Relaxed);
            assert_eq!(hung, 0, "of 60 children");
        });
    });
}
