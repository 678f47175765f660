//! A block of one domain that is freed through another is reported, with both letters.

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
    let host = Host::new().with_handler(keep);
    let mem = DebugHooks::new(LibcMalloc, Domain::Mem).with_host(host);
    let raw = DebugHooks::new(LibcMalloc, Domain::Raw).with_host(host);
    let block = mem.malloc(16);
    // SAFETY: the bug.
    unsafe { raw.free(block) };

    let violation = last();
    assert_eq!(violation.kind(), ViolationKind::WrongDomain { allocated: Domain::Mem });
    let message = "bad ID: Allocated using API 'm', verified using API 'r'";
    assert_eq!(violation.message().to_string(), message);
    print!("{violation}");
    // SAFETY: still live, as the hooks refused it; not used again.
    unsafe { mem.free(block) };
    assert!(LAST.lock().unwrap().is_none());
}
