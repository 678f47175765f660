//! A child never waits for a thread that only its parent has. Each test forks in a process of its own.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use malloc_api::testing::alone;
use malloc_api::{LibcMalloc, Malloc};
use pymem_domains::{
    AllocatorName as N, AllocatorRecord, Build, Domain, Domains, Profile, Version,
};

/// Seconds after which a child that hangs is ended by a signal.
const PATIENCE: u32 = 30;

/// Forks; the child runs `work` and ends. Whether it came to its end.
pub(crate) fn fork(work: impl FnOnce()) -> bool {
    // SAFETY: the child only allocates, which the handlers keep possible, and ends without running anything of the parent's.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        // SAFETY: no preconditions.
        unsafe { libc::alarm(PATIENCE) };
        work();
        // SAFETY: ends the child.
        unsafe { libc::_exit(7) };
    }
    let mut status = 0;
    // SAFETY: a writable status.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 7
}

/// Allocates, and asks for what only the lock of the layers gives out.
fn use_all(domains: Domains) {
    for domain in Domain::ALL {
        let block = domains.get(domain).malloc(100_000);
        assert!(block.is_some());
        // SAFETY: live, of this domain, not used again.
        unsafe { domains.get(domain).free(block) };
        let _ = domains.get_allocator(domain);
    }
}

#[test]
fn a_fork_while_records_change() {
    alone("forks::a_fork_while_records_change", fork_while_records_change);
}

fn fork_while_records_change() {
    let domains = Domains::new(Profile::CURRENT, None).unwrap();
    domains.start();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            // The lock is held for most of this loop, in which nothing allocates.
            let mem = domains.get_allocator(Domain::Mem);
            while !stop.load(Relaxed) {
                for _ in 0..1_000 {
                    domains.set_allocator(Domain::Mem, mem).unwrap();
                }
            }
        });
        let hanging = (0..200).position(|_| !fork(|| use_all(domains)));
        stop.store(true, Relaxed);
        assert_eq!(hanging, None, "the first child that hung");
    });
}

/// A raw allocator that keeps its first caller inside for a while after a fork was announced.
struct Slow;

static INSIDE: AtomicBool = AtomicBool::new(false);
static FORKING: AtomicBool = AtomicBool::new(false);

// SAFETY: 1-5: every call is passed on to `LibcMalloc`.
unsafe impl Malloc for Slow {
    fn malloc(&self, size: usize) -> Option<std::ptr::NonNull<u8>> {
        if !INSIDE.swap(true, Relaxed) {
            while !FORKING.load(Relaxed) {
                thread::yield_now();
            }
            // The fork that was announced would come now, were it not to wait.
            thread::sleep(Duration::from_millis(200));
        }
        LibcMalloc.malloc(size)
    }

    fn calloc(&self, nelem: usize, elsize: usize) -> Option<std::ptr::NonNull<u8>> {
        LibcMalloc.calloc(nelem, elsize)
    }

    unsafe fn realloc(
        &self,
        ptr: Option<std::ptr::NonNull<u8>>,
        new_size: usize,
    ) -> Option<std::ptr::NonNull<u8>> {
        // SAFETY: the caller's duties 1 and 2.
        unsafe { LibcMalloc.realloc(ptr, new_size) }
    }

    unsafe fn free(&self, ptr: Option<std::ptr::NonNull<u8>>) {
        // SAFETY: the caller's duties 1 and 2.
        unsafe { LibcMalloc.free(ptr) }
    }
}

#[test]
fn a_fork_while_the_pools_are_locked() {
    if !cfg!(feature = "pymalloc") {
        return;
    }
    alone("forks::a_fork_while_the_pools_are_locked", fork_while_the_pools_are_locked);
}

fn fork_while_the_pools_are_locked() {
    let profile = Profile::new(Version::NEWEST, Build::Gil, true, false, false).unwrap();
    let domains = Domains::new(profile, Some(N::Pymalloc)).unwrap();
    domains.set_allocator(Domain::Raw, AllocatorRecord::new(&Slow)).unwrap();
    thread::scope(|scope| {
        // From obj: its pools hold their lock while they ask raw.
        scope.spawn(|| {
            let block = domains.get(Domain::Obj).malloc(100_000);
            // SAFETY: live, of this domain, not used again.
            unsafe { domains.get(Domain::Obj).free(block) };
        });
        while !INSIDE.load(Relaxed) {
            thread::yield_now();
        }
        FORKING.store(true, Relaxed);
        assert!(
            fork(|| use_all(domains)),
            "the child hangs on the lock of a thread that it does not have"
        );
    });
}
