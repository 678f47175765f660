//! A child never waits for a thread that only its parent has. Each test forks in a process of its own.

use std::ptr::{self, NonNull};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use std::sync::atomic::{AtomicBool, AtomicPtr};
use std::thread;
use std::time::Duration;

use malloc_api::testing::{alone, forked};
use malloc_api::{LibcMalloc, Malloc};
use pymem_domains::{
    AllocatorName as N, AllocatorRecord, Build, Domain, Domains, Profile, Version, global,
};

/// Forks; the child runs `work` and ends. Whether it came to its end.
pub(crate) fn fork(work: impl FnOnce()) -> bool {
    // SAFETY: 1: the child only allocates, which the handlers keep possible.
    unsafe { forked(work) }.1.success()
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
    let domains = Domains::new(crate::profile(), None).unwrap();
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

#[test]
fn a_fork_while_the_process_wide_domains_are_looked_up() {
    alone("forks::a_fork_while_the_process_wide_domains_are_looked_up", fork_while_looked_up);
}

fn fork_while_looked_up() {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        // The lock of the state behind `global` is held for most of this loop.
        scope.spawn(|| {
            while !stop.load(Relaxed) {
                let _ = global::domains();
            }
        });
        let hanging = (0..200).position(|_| !fork(|| use_all(global::domains())));
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
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        if !INSIDE.swap(true, Relaxed) {
            while !FORKING.load(Relaxed) {
                thread::yield_now();
            }
            // The fork that was announced would come now, were it not to wait.
            thread::sleep(Duration::from_millis(200));
        }
        LibcMalloc.malloc(size)
    }

    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        LibcMalloc.calloc(nelem, elsize)
    }

    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        // SAFETY: the caller's duties 1 and 2.
        unsafe { LibcMalloc.realloc(ptr, new_size) }
    }

    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
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

/// Threads that allocate while their process forks.
const THREADS: usize = 8;
/// Blocks that each of them keeps.
const KEPT: usize = 64;

/// Where a thread keeps its blocks; whoever takes one out frees it.
type Table = [AtomicPtr<u8>; KEPT];

/// Puts a block that holds its size and is filled with its low byte into `place`, and frees the one that was there.
fn renew(domains: Domains, place: &AtomicPtr<u8>, domain: Domain, size: usize) {
    let block = domains.get(domain).malloc(size).expect("memory");
    // SAFETY: a fresh block of this many bytes.
    unsafe { block.write_bytes(size as u8, size) };
    // SAFETY: aligned, and at least a word long.
    unsafe { block.cast::<usize>().write(size) };
    // Acquire and Release: the child's `take` or the next `renew` sees the content of what it takes.
    take(domains, place.swap(block.as_ptr(), AcqRel), domain);
}

/// Checks and frees a block that was taken out of a table.
fn take(domains: Domains, block: *mut u8, domain: Domain) {
    let Some(block) = NonNull::new(block) else { return };
    // SAFETY: a live block, whose content `renew` wrote before it was put into the table.
    let size = unsafe { block.cast::<usize>().read() };
    // SAFETY: as above.
    let bytes = unsafe { std::slice::from_raw_parts(block.as_ptr(), size) };
    assert!(
        bytes[8..].iter().all(|&byte| byte == size as u8),
        "a block of {size} bytes was changed"
    );
    // SAFETY: taken out of its table, so nobody else's.
    unsafe { domains.get(domain).free(Some(block)) };
}

#[test]
fn a_fork_while_eight_threads_allocate() {
    alone("forks::a_fork_while_eight_threads_allocate", fork_while_eight_threads_allocate);
}

/// The child frees whatever the eight threads that it does not have had kept, and allocates as much again.
fn fork_while_eight_threads_allocate() {
    let profile = crate::profile();
    for name in N::ALL.into_iter().filter(|name| name.row(&profile).is_ok()) {
        let Ok(domains) = Domains::new(profile, Some(name)) else { continue };
        let tables: [Table; THREADS] =
            std::array::from_fn(|_| [const { AtomicPtr::new(ptr::null_mut()) }; KEPT]);
        let stop = AtomicBool::new(false);
        let domain = |index: usize| Domain::ALL[index % Domain::ALL.len()];
        thread::scope(|scope| {
            for (seed, table) in tables.iter().enumerate() {
                let stop = &stop;
                scope.spawn(move || {
                    let mut random = fastrand::Rng::with_seed(seed as u64);
                    while !stop.load(Relaxed) {
                        let index = random.usize(..KEPT);
                        let most = if random.u8(..) == 0 { 100_000 } else { 600 };
                        renew(domains, &table[index], domain(index), random.usize(8..most));
                    }
                });
            }
            let child = || {
                for table in &tables {
                    for (index, place) in table.iter().enumerate() {
                        take(domains, place.swap(ptr::null_mut(), Acquire), domain(index));
                        renew(domains, place, domain(index), 8 + index * 9);
                    }
                }
            };
            let failed = (0..20).position(|_| !fork(child));
            stop.store(true, Relaxed);
            assert_eq!(
                failed, None,
                "{name:?}: the first child that hung or found a block changed"
            );
        });
        for (index, place) in tables.iter().flat_map(|table| table.iter().enumerate()) {
            take(domains, place.swap(ptr::null_mut(), Acquire), domain(index));
        }
    }
}
