//! A second free of a block is reported with the sites of its allocation and of its first free.

use std::sync::Mutex;

use malloc_api::{LibcMalloc, Malloc};
use memdebug::{DebugHooks, Domain, Host, Violation, ViolationKind};

/// What the hooks reported last. A program would leave the handler alone: its report is on stderr, and it aborts.
static LAST: Mutex<Option<Violation>> = Mutex::new(None);

fn keep(violation: &Violation) {
    *LAST.lock().unwrap() = Some(violation.clone());
}

fn last() -> Violation {
    LAST.lock().unwrap().take().expect("the bug was reported")
}

fn main() {
    let hooks = DebugHooks::new(LibcMalloc, Domain::Mem)
        .with_host(Host::new().with_handler(keep))
        .with_options(&"strict,backtrace=8".parse().unwrap())
        .unwrap();
    let block = hooks.malloc(100);
    // SAFETY: live.
    unsafe { hooks.free(block) };
    // SAFETY: the bug.
    unsafe { hooks.free(block) };

    let violation = last();
    assert_eq!(violation.kind(), ViolationKind::DoubleFree);
    assert!(violation.allocated().is_some() && violation.freed().is_some());
    let report = violation.to_string();
    assert!(report.contains("memdebug: double free: the block was freed before.\n"));
    assert!(report.contains("Memory block freed by (most recent call first):\n"));
    print!("{report}");
}
