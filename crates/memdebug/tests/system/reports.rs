//! A report when there is no memory at all: its text is made in buffers of fixed size.

use std::ptr::NonNull;

use malloc_api::testing::{GlobalFailAfter, MemoryCall, Refusals, test_process};
use malloc_api::{LibcMalloc, Malloc};
use memdebug::{DebugHooks, Domain, Host, handler};
use rstest::rstest;

const VARIABLE: &str = "MEMDEBUG_TEST_REPORT";

#[global_allocator]
static ALLOCATOR: GlobalFailAfter = GlobalFailAfter;

/// What a child runs: a bug whose report finds no memory; in the parent one that has none.
#[test]
fn child() {
    let words = std::env::var(VARIABLE).unwrap_or_else(|_| String::from("none;"));
    let (bug, options) = words.split_once(';').expect("a bug and options");
    let host = Host::new().with_handler(handler::report);
    let hooks = DebugHooks::new(LibcMalloc, Domain::Mem).with_host(host);
    let hooks = hooks.with_options(&options.parse().expect("options")).expect("memory");
    let block = hooks.malloc(100).expect("memory").as_ptr();
    let free = |block| {
        // SAFETY: the block, or a planted bug.
        unsafe { hooks.free(NonNull::new(block)) };
    };
    let refusals = Refusals::of(&MemoryCall::ALL, 0, usize::MAX);
    GlobalFailAfter::with(0, || match bug {
        "none" => free(block),
        "overflow" => {
            // SAFETY: a planted bug: the first guard byte.
            unsafe { block.wrapping_add(100).write(7) };
            free(block);
        }
        "inside" => free(block.wrapping_add(32)),
        "twice" => {
            free(block);
            free(block);
        }
        _ => unreachable!("no bug is called {bug:?}"),
    });
    drop(refusals);
}

#[rstest]
fn a_report_needs_no_memory(
    #[values("overflow", "inside", "twice")] bug: &str,
    #[values("", "serial", "quarantine", "strict")] options: &str,
) {
    let output =
        test_process("reports::child").env(VARIABLE, format!("{bug};{options}")).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{bug}, {options}: {:?}\n{errors}", output.status);
    let reports = errors.matches("Debug memory block at address p=0x").count();
    assert_eq!(reports, 1, "{bug}, {options}: {errors}");
}

/// What a child runs: leaks two blocks, and finds no memory at its exit; in the parent nothing is refused.
#[test]
fn leaking_child() {
    let hooks = DebugHooks::new(LibcMalloc, Domain::Mem).with_host(Host::new());
    let options = "leaks,leak_exit=7".parse().expect("options");
    if std::env::var_os(VARIABLE).is_none() {
        return drop(hooks.with_options(&options).expect("memory"));
    }
    let hooks = hooks.with_options(&options).expect("memory");
    std::hint::black_box([hooks.malloc(100), hooks.malloc(50)]);
    std::mem::forget((hooks, Refusals::of(&[MemoryCall::Mmap], 0, usize::MAX)));
    // SAFETY: the handlers that run are ours; the calling thread's memory calls fail until the end.
    unsafe { libc::exit(0) };
}

#[test]
fn leaks_are_counted_without_memory() {
    let output = test_process("reports::leaking_child").env(VARIABLE, "").output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "memdebug: 2 blocks with 150 bytes are still live.\n\
         There is no memory to group them by domain and place.\n"
    );
    assert_eq!(output.status.code(), Some(7));
}
