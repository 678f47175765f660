//! A write past the end of a block is reported when the block is freed.

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
    let hooks = DebugHooks::new(LibcMalloc, Domain::Mem).with_host(Host::new().with_handler(keep));
    let name = hooks.malloc(5).expect("memory");
    // SAFETY: the bug: five bytes, and a closing NUL that has no room.
    unsafe { c"Monty".as_ptr().cast::<u8>().copy_to_nonoverlapping(name.as_ptr(), 6) };
    // SAFETY: live, and not used again.
    unsafe { hooks.free(Some(name)) };

    let violation = last();
    assert_eq!(violation.kind(), ViolationKind::TrailingPad);
    assert_eq!(violation.message().to_string(), "bad trailing pad byte");
    let report = violation.to_string();
    assert!(report.contains("at tail+0: 0x00 *** OUCH\n        at tail+1: 0xfd\n"));
    assert!(report.contains("Data at p: 4d 6f 6e 74 79\n"));
    print!("{report}");
}
