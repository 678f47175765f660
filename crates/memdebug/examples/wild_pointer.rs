//! Frees of pointers that are no block end in a report: inside a block, on the stack, nowhere.

use std::sync::Mutex;

use malloc_api::{LibcMalloc, Malloc};
use memdebug::{DebugHooks, Domain, Host, Violation, ViolationKind, install_fault_handler};

/// What the hooks reported last. A program would leave the handler alone: its report is on stderr, and it aborts.
static LAST: Mutex<Option<Violation>> = Mutex::new(None);

fn keep(violation: &Violation) {
    *LAST.lock().unwrap() = Some(violation.clone());
}

fn last() -> Violation {
    LAST.lock().unwrap().take().expect("the bug was reported")
}

fn main() {
    install_fault_handler().expect("a handler of SIGSEGV");
    let hooks = DebugHooks::new(LibcMalloc, Domain::Mem).with_host(Host::new().with_handler(keep));
    let block = hooks.malloc(100).expect("memory");
    let mut local = [0_u64; 8];
    let inside = block.as_ptr().wrapping_add(32);
    let on_stack = local.as_mut_ptr().wrapping_add(4).cast::<u8>();
    let nowhere = std::ptr::without_provenance_mut::<u8>(0x1000);
    for wild in [inside, on_stack, nowhere] {
        // SAFETY: the bug.
        unsafe { hooks.free(std::ptr::NonNull::new(wild)) };
        let violation = last();
        match violation.kind() {
            ViolationKind::InteriorPointer { size, .. } => assert!(wild == inside && size == 100),
            kind => assert!(kind == ViolationKind::ForeignPointer && wild != inside),
        }
        println!("{violation}");
    }
    // SAFETY: live, and not used again.
    unsafe { hooks.free(Some(block)) };
}
