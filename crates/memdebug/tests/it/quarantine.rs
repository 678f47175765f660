//! The quarantine's bounds, its order, and its check at exit.

use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use malloc_api::Malloc;
use malloc_api::testing::forked;
use memdebug::{Domain, Host, ViolationKind, handler};

use crate::support::{hooks, hooks_of, seen};

#[test]
fn bounds_hold() {
    let hooks = hooks(Domain::Raw, "quarantine=256K:512");
    let mut random = fastrand::Rng::with_seed(1);
    let mut most = (0, 0);
    for _ in 0..20_000 {
        let p = hooks.malloc(random.usize(0..3000));
        // SAFETY: live, and not used again.
        unsafe { hooks.free(p) };
        let (bytes, blocks) = hooks.quarantined();
        assert!(bytes <= 256 << 10 && blocks <= 512, "{bytes} bytes, {blocks} blocks");
        most = (most.0.max(bytes), most.1.max(blocks));
    }
    assert!(most.0 > 100 << 10 && most.1 > 60, "it holds blocks: {most:?}");
    let held = hooks.quarantined().1;
    assert_eq!(hooks.release_quarantine(), held);
    assert_eq!(hooks.quarantined(), (0, 0));
    assert!(seen().is_empty());
}

#[test]
fn a_block_stays_for_as_many_frees_as_fit() {
    let hooks = hooks(Domain::Raw, "quarantine=1M:64");
    let p = hooks.malloc(100).unwrap();
    // SAFETY: live; the quarantine keeps it readable.
    unsafe { hooks.free(Some(p)) };
    for _ in 0..20 {
        let other = hooks.malloc(100);
        // SAFETY: live, and not used again.
        unsafe { hooks.free(other) };
    }
    // SAFETY: a planted bug, into a held block.
    unsafe { p.as_ptr().wrapping_add(16).write(9) };
    assert!(seen().is_empty());
    for _ in 0..64 {
        let other = hooks.malloc(100);
        // SAFETY: live, and not used again.
        unsafe { hooks.free(other) };
    }
    let seen = seen();
    assert_eq!(seen.len(), 1);
    let kind = ViolationKind::UseAfterFree { offset: 16, found: 9, changed: 1 };
    assert_eq!(seen[0].kind(), kind);
    assert_eq!(seen[0].address(), Some(p.as_ptr().addr()));
    assert_eq!(seen[0].stated_size(), Some(100));
}

#[test]
fn a_double_free_is_certain_after_many_other_frees() {
    let hooks = hooks(Domain::Mem, "strict,backtrace=4");
    for others in [0, 1, 1000] {
        let p = hooks.malloc(40);
        // SAFETY: live.
        unsafe { hooks.free(p) };
        for _ in 0..others {
            let other = hooks.malloc(40);
            // SAFETY: live, and not used again.
            unsafe { hooks.free(other) };
        }
        // SAFETY: a planted bug.
        unsafe { hooks.free(p) };
        let seen = seen();
        assert_eq!(seen.len(), 1, "after {others}");
        assert_eq!(seen[0].kind(), ViolationKind::DoubleFree);
        assert!(seen[0].allocated().is_some() && seen[0].freed().is_some());
    }
}

/// A walk over the held blocks reads none that has left meanwhile and serves again.
#[test]
fn a_walk_beside_frees_reports_nothing() {
    let hooks = hooks_of(Host::new().with_handler(handler::panic), Domain::Raw, "quarantine=4K:8");
    let walking = AtomicBool::new(true);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while walking.load(Relaxed) {
                    let p = hooks.malloc(64).expect("memory");
                    // SAFETY: live, of 64 bytes.
                    unsafe { p.write_bytes(7, 64) };
                    // SAFETY: live, and not used again.
                    unsafe { hooks.free(Some(p)) };
                }
            });
        }
        let start = Instant::now();
        let walk = || {
            while start.elapsed() < Duration::from_millis(500) {
                assert_eq!(hooks.check_all(), 0);
            }
        };
        let found = catch_unwind(AssertUnwindSafe(walk));
        walking.store(false, Relaxed);
        assert!(found.is_ok(), "a block without a bug was reported");
    });
}

/// What a child does: writes to a held block and exits.
pub(crate) fn child(options: &str) {
    static HELD: std::sync::OnceLock<crate::support::Hooks> = std::sync::OnceLock::new();
    let hooks = HELD.get_or_init(|| hooks_of(Host::new(), Domain::Mem, options));
    hooks.verify_at_exit();
    let p = hooks.malloc(32).unwrap();
    // SAFETY: live; the quarantine keeps it.
    unsafe { hooks.free(Some(p)) };
    // SAFETY: a planted bug, into a held block.
    unsafe { p.as_ptr().wrapping_add(3).write(0x58) };
}

#[test]
fn verified_at_exit() {
    for options in ["quarantine", "strict"] {
        let output = crate::child::run(&format!("quarantine:{options}"));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{errors}");
        let line = "memdebug: use after free: 1 of the freed block's bytes changed, the first at p+3 is 0x58 instead of \
                    DEADBYTE (0xdd). Found by a later check of the block.";
        assert!(errors.contains(line), "{errors}");
    }
}

/// A child of `fork` neither hangs nor reports while other threads of the parent hold the locks.
#[test]
fn forks_while_others_allocate() {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
    let hooks = hooks(Domain::Raw, "strict,backtrace=2,guard=1/20");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Relaxed) {
                    let p = hooks.malloc(50);
                    // SAFETY: live, and not used again.
                    unsafe { hooks.free(p) };
                }
            });
        }
        let work = || {
            for _ in 0..50 {
                let p = hooks.malloc(50);
                // SAFETY: live, and not used again.
                unsafe { hooks.free(p) };
            }
        };
        // SAFETY: 1: the child calls the hooks alone.
        let failed = (0..200).map(|_| unsafe { forked(work) }.1).find(|end| !end.success());
        // Before any panic, or the threads would go on for ever.
        done.store(true, Relaxed);
        assert_eq!(failed, None, "how a child ended");
    });
}
