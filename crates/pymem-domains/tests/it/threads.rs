//! Records that change while other threads allocate.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use malloc_api::Malloc;
use pymem_domains::{AllocatorRecord, Domain, Domains};

/// A wrapper whose context must be its own: it checks a mark in each call.
struct Marked {
    inner: AllocatorRecord,
    mark: usize,
    calls: AtomicUsize,
}

const MARK: usize = 0x5ca1_ab1e;

impl Marked {
    fn check(&self) {
        assert_eq!(
            self.mark, MARK,
            "a torn record: the function of one with the context of another"
        );
        self.calls.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: 1-5: every call is passed on.
unsafe impl Malloc for Marked {
    fn malloc(&self, size: usize) -> Option<std::ptr::NonNull<u8>> {
        self.check();
        self.inner.malloc(size)
    }

    fn calloc(&self, nelem: usize, elsize: usize) -> Option<std::ptr::NonNull<u8>> {
        self.check();
        self.inner.calloc(nelem, elsize)
    }

    unsafe fn realloc(
        &self,
        ptr: Option<std::ptr::NonNull<u8>>,
        new_size: usize,
    ) -> Option<std::ptr::NonNull<u8>> {
        self.check();
        // SAFETY: the caller's duties 1 and 2.
        unsafe { self.inner.realloc(ptr, new_size) }
    }

    unsafe fn free(&self, ptr: Option<std::ptr::NonNull<u8>>) {
        self.check();
        // SAFETY: the caller's duties 1 and 2.
        unsafe { self.inner.free(ptr) }
    }
}

#[test]
fn wrappers_come_and_go_while_others_allocate() {
    let domains =
        Domains::new(crate::profile(), Some(pymem_domains::AllocatorName::Debug)).unwrap();
    let stop = AtomicBool::new(false);
    let start = std::sync::Barrier::new(4);
    thread::scope(|scope| {
        for seed in 0..3_u64 {
            let (stop, start) = (&stop, &start);
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(seed);
                let mut live: Vec<(Domain, std::ptr::NonNull<u8>, usize)> = Vec::new();
                start.wait();
                while !stop.load(Ordering::Relaxed) {
                    let domain = Domain::ALL[random.usize(0..3)];
                    let size = random.usize(1..700);
                    let block = domains.get(domain).malloc(size).unwrap();
                    // SAFETY: `size` bytes are this thread's.
                    unsafe { block.write_bytes(size as u8, size) };
                    live.push((domain, block, size));
                    if live.len() > 100 {
                        let (domain, block, size) = live.swap_remove(random.usize(0..live.len()));
                        // SAFETY: live, and filled above.
                        let bytes = unsafe { std::slice::from_raw_parts(block.as_ptr(), size) };
                        assert!(bytes.iter().all(|byte| *byte == size as u8));
                        // SAFETY: live, of this domain, not used again.
                        unsafe { domains.get(domain).free(Some(block)) };
                    }
                }
                for (domain, block, _) in live {
                    // SAFETY: live, of this domain, not used again.
                    unsafe { domains.get(domain).free(Some(block)) };
                }
            });
        }
        start.wait();
        let mut wrappers: Vec<&'static Marked> = Vec::new();
        for round in 0..600 {
            let domain = Domain::ALL[round % 3];
            let mut wrapper = None;
            // SAFETY: `Marked` passes blocks through as they are.
            let inner = unsafe {
                domains.wrap_allocator(domain, |inner| {
                    let calls = AtomicUsize::new(0);
                    let marked = Box::leak(Box::new(Marked { inner, mark: MARK, calls }));
                    wrapper = Some(&*marked);
                    AllocatorRecord::new(marked)
                })
            };
            wrappers.extend(wrapper);
            // Wait until somebody came through it, so that every round overlaps with calls.
            while wrapper.unwrap().calls.load(Ordering::Relaxed) == 0 {
                thread::yield_now();
            }
            domains.set_allocator(domain, inner).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        assert_eq!(wrappers.len(), 600);
    });
    assert_eq!(domains.current_name(), Some(domains.row().canonical_name()));
}

#[test]
fn threads_race_for_the_first_use_and_for_the_set_before_it() {
    for round in 0..200 {
        let domains = Domains::new(crate::profile(), None).unwrap();
        let start = std::sync::Barrier::new(3);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    start.wait();
                    let mem = domains.get(Domain::Mem);
                    let block = mem.malloc(round + 1);
                    // SAFETY: live, of this domain, not used again. Were the base replaced between the two calls, this
                    // would free a foreign block.
                    unsafe { mem.free(block) };
                });
            }
            start.wait();
            let other = Domains::new(crate::profile(), Some(pymem_domains::AllocatorName::Debug));
            let record = other.unwrap().get_allocator(Domain::Mem);
            let before = domains.get_allocator(Domain::Mem);
            let set = domains.set_allocator(Domain::Mem, record);
            let now = domains.get_allocator(Domain::Mem);
            assert_eq!(now, if set.is_ok() { record } else { before });
        });
    }
}
