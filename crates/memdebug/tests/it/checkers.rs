//! Bugs that a memory checker must report at the access itself, before the hooks would see them, and a program without one.
//!
//! Each bug is a child of its own. With the feature `valgrind` it runs in memcheck, where that is installed; with `asan` it
//! needs a build for AddressSanitizer, as `cargo xtask asan` makes.

use std::process::Output;
use std::ptr::NonNull;

use malloc_api::testing::under_memory_checker;
use malloc_api::{LibcMalloc, Malloc};
use malloc_trace::{generate, run};
use memdebug::{DebugHooks, Domain};
use rstest::rstest;

use crate::support::options;

const VARIABLE: &str = "MEMDEBUG_TEST_ACCESS";

/// What the child runs; in the parent there is nothing to run but a program without a bug.
#[test]
fn program() {
    let bug = std::env::var(VARIABLE).unwrap_or_else(|_| String::from("none;"));
    let (bug, text) = bug.split_once(';').expect("a bug and options");
    let hooks = DebugHooks::new(LibcMalloc, Domain::Mem).with_options(&options(text)).unwrap();
    let block = hooks.malloc(50).expect("memory");
    let access = |offset: isize| {
        // SAFETY: the planted bug.
        unsafe { block.as_ptr().wrapping_offset(offset).write_volatile(1) };
    };
    let read = |offset: isize| {
        // SAFETY: the planted bug.
        std::hint::black_box(unsafe { block.as_ptr().wrapping_offset(offset).read_volatile() });
    };
    match bug {
        "none" => {
            for seed in 0..3 {
                let summary = run(&generate::random(seed, 500, 9_000), &hooks).expect("no fault");
                assert_eq!(summary.failed, 0);
            }
            hooks.check_all();
            hooks.release_quarantine();
        }
        "read past" => read(50),
        "read before" => read(-1),
        "read after free" => {
            // SAFETY: live; used again, which is the planted bug.
            unsafe { hooks.free(Some(block)) };
            read(20);
        }
        "overflow" => access(50),
        "underflow" => access(-1),
        "use after free" => {
            // SAFETY: live; used again, which is the planted bug.
            unsafe { hooks.free(Some(block)) };
            access(49);
        }
        "after growing" => {
            // SAFETY: live; used again, which is the planted bug.
            let block = unsafe { hooks.realloc(Some(block), 70) }.expect("memory");
            let at = NonNull::new(block.as_ptr().wrapping_add(70)).expect("not null");
            // SAFETY: the planted bug.
            unsafe { at.write_volatile(1) };
        }
        "uninitialised" => {
            // SAFETY: the planted bug.
            if unsafe { block.read_volatile() } == 7 {
                println!("seven");
            }
        }
        _ => panic!("no bug is called {bug:?}"),
    }
}

/// Runs a bug under the tool of this build; `None`, and says so, where it is not there.
fn child(bug: &str, options: &str) -> Option<Output> {
    let mut command = under_memory_checker("checkers::program")?;
    Some(command.env(VARIABLE, format!("{bug};{options}")).output().expect("the child starts"))
}

#[rstest]
#[case::overflow("overflow", "use-after-poison", "Invalid write of size 1")]
#[case::underflow("underflow", "use-after-poison", "Invalid write of size 1")]
#[case::use_after_free("use after free", "-after-", "Invalid write of size 1")]
#[case::read_past("read past", "use-after-poison", "Invalid read of size 1")]
#[case::read_before("read before", "use-after-poison", "Invalid read of size 1")]
#[case::read_after_free("read after free", "-after-", "Invalid read of size 1")]
#[case::after_growing("after growing", "use-after-poison", "Invalid write of size 1")]
#[case::uninitialised("uninitialised", "", "depends on uninitialised value")]
fn a_bug_is_reported_at_the_access(
    #[case] bug: &str,
    #[case] asan: &str,
    #[case] memcheck: &str,
    #[values("", "serial", "quarantine")] options: &str,
) {
    let words = if cfg!(pymem_asan) { asan } else { memcheck };
    let Some(output) = child(bug, options).filter(|_| !words.is_empty()) else { return };
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(99), "{bug}, {options}: {text}");
    assert!(text.contains(words), "{bug}, {options}: {text}");
}

#[rstest]
fn no_bug_is_no_report(#[values("", "serial", "full_erase", "strict")] options: &str) {
    let Some(output) = child("none", options) else { return };
    assert!(output.status.success(), "{options}: {}", String::from_utf8_lossy(&output.stderr));
}
