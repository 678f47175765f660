//! The hooks called where they are called already: from the handler of a report, and from a thread's last destructors.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use malloc_api::Malloc;
use memdebug::{Domain, Host, Violation, install_fault_handler};
use rstest::rstest;

use crate::support::{Bug, Hooks, SIZES, another, collect, hooks_of, seen};

const OPTIONS: [&str; 5] =
    ["", "quarantine", "strict,serial", "strict,backtrace=4", "guard=1/3,strict"];

/// Blocks of sizes that go to different rings and shards, allocated, resized and freed.
fn use_hooks(hooks: &impl Malloc) {
    for size in SIZES {
        let block = hooks.calloc(size, 1);
        assert!(block.is_some());
        // SAFETY: live, and the old pointer is not used again.
        let moved = unsafe { hooks.realloc(block, size + 50) };
        assert!(moved.is_some());
        // SAFETY: live, and not used again.
        unsafe { hooks.free(moved) };
    }
}

thread_local! {
    /// The hooks that the handler uses: those that report.
    static REPORTING: Cell<Option<&'static Hooks>> = const { Cell::new(None) };
}

/// A handler that allocates and frees through the hooks that called it, as a host does that formats its own message.
fn reenter(violation: &Violation) {
    if let Some(hooks) = REPORTING.take() {
        use_hooks(hooks);
        REPORTING.set(Some(hooks));
    }
    collect(violation);
}

/// Every bug is reported once by a handler that uses the hooks itself: no lock is held meanwhile.
#[rstest]
fn a_handler_may_use_the_hooks_that_report(
    #[values("", "quarantine", "strict,serial", "strict,backtrace=4")] options: &str,
) {
    install_fault_handler().unwrap();
    let host = Host::new().with_handler(reenter).with_thread_check(|| true);
    let ours: &'static Hooks = Box::leak(Box::new(hooks_of(host, Domain::Mem, options)));
    let other = hooks_of(host, another(Domain::Mem), options);
    for size in [0, 16, 513] {
        for bug in Bug::all(size, !options.is_empty()) {
            if bug == Bug::NoGil {
                continue;
            }
            REPORTING.set(Some(ours));
            bug.plant(ours, &other, size);
            REPORTING.set(None);
            let seen = seen();
            assert_eq!(seen.len(), 1, "{bug:?}, {size} bytes, {options:?}: {seen:?}");
        }
    }
}

/// Destructors of a thread's locals that run after those of the hooks: what the hooks keep for a thread is gone, and blocks
/// are made and checked all the same.
#[rstest]
fn late_destructors_may_use_the_hooks(#[values(0, 1, 2, 3, 4)] index: usize) {
    struct Late(Cell<Option<&'static Hooks>>, Cell<usize>);
    impl Drop for Late {
        fn drop(&mut self) {
            if let Some(hooks) = self.0.get() {
                use_hooks(hooks);
                DONE.fetch_or(1 << self.1.get(), Relaxed);
            }
        }
    }
    thread_local!(static LATE: Late = const { Late(Cell::new(None), Cell::new(0)) });
    static DONE: AtomicUsize = AtomicUsize::new(0);
    let hooks: &'static Hooks =
        Box::leak(Box::new(hooks_of(Host::new(), Domain::Raw, OPTIONS[index])));
    let thread = std::thread::spawn(move || {
        // Registered first, so that it runs last.
        LATE.with(|late| {
            late.0.set(Some(hooks));
            late.1.set(index);
        });
        use_hooks(hooks);
    });
    thread.join().unwrap();
    assert_eq!(DONE.load(Relaxed) & 1 << index, 1 << index, "the destructor ran to its end");
}
