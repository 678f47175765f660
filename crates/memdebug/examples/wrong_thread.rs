//! A call without the lock that the domain needs is reported: the host says who may call.

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

thread_local! {
    static HAS_GIL: std::cell::Cell<bool> = const { std::cell::Cell::new(true) };
}

fn main() {
    let host = Host::new().with_handler(keep).with_thread_check(|| HAS_GIL.get());
    let hooks = DebugHooks::new(LibcMalloc, Domain::Obj).with_host(host);
    let block = hooks.malloc(1);
    assert!(LAST.lock().unwrap().is_none());
    HAS_GIL.set(false);
    // SAFETY: live, and not used again. The bug is the missing GIL.
    unsafe { hooks.free(block) };

    let violation = last();
    assert_eq!(violation.kind(), ViolationKind::WrongThread);
    assert_eq!(violation.func(), "_PyMem_DebugFree");
    assert_eq!(violation.message().to_string(), Host::WITHOUT_GIL);
    println!("{}: {}", violation.func(), violation.message());
}
