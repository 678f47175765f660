//! A write in front of a block is reported when the block is freed.

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
    let hooks = DebugHooks::new(LibcMalloc, Domain::Obj).with_host(Host::new().with_handler(keep));
    let numbers = hooks.malloc(32).expect("memory").cast::<i32>();
    // SAFETY: the bug: an index that went one too far down.
    unsafe { numbers.as_ptr().wrapping_sub(1).write(-1) };
    // SAFETY: live, and not used again.
    unsafe { hooks.free(Some(numbers.cast())) };

    let violation = last();
    assert_eq!(violation.kind(), ViolationKind::LeadingPad);
    assert_eq!(violation.message().to_string(), "bad leading pad byte");
    assert!(violation.to_string().contains("at p-4: 0xff *** OUCH\n"));
    print!("{violation}");
}
