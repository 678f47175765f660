//! A write to freed memory is found when the block leaves the quarantine, and the byte is named.

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
        .with_options(&"quarantine=1M".parse().unwrap())
        .unwrap();
    let block = hooks.malloc(64).expect("memory");
    // SAFETY: live.
    unsafe { hooks.free(Some(block)) };
    // SAFETY: the bug. The quarantine still has the block, so that nobody else's memory is hit.
    unsafe { block.as_ptr().wrapping_add(16).write(7) };
    assert_eq!(hooks.release_quarantine(), 1);

    let violation = last();
    let kind = ViolationKind::UseAfterFree { offset: 16, found: 7, changed: 1 };
    assert_eq!(violation.kind(), kind);
    assert!(violation.to_string().contains("the first at p+16 is 0x07 instead of DEADBYTE"));
    print!("{violation}");
}
