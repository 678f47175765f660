//! A report when there is no memory at all: its text is made in buffers of fixed size.

use std::ptr::NonNull;

use malloc_api::testing::{GlobalFailAfter, MemoryCall, Refusals, test_process};
use malloc_api::{LibcMalloc, Malloc};
use memdebug::{ApiId, DebugHooks, Host, handler};
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
    let hooks = DebugHooks::new(LibcMalloc, ApiId::Mem).with_host(host);
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
