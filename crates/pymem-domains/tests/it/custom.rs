//! Custom allocators in both languages: what reaches them, and that contexts and arguments arrive as they were.

use core::ffi::c_void;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

use malloc_api::testing::{Counting, FailAfter, conformance};
use malloc_api::{LibcMalloc, Malloc};
use malloc_trace::Op;
use pymem_domains::{
    AllocatorName, AllocatorRecord, Domain, Domains, PyMemAllocatorEx, ThreadSafety,
};
use rstest::rstest;

fn domains() -> Domains {
    Domains::new(crate::profile(), Some(AllocatorName::Default)).unwrap()
}

/// What CPython's `test_pymem_setallocators` keeps: the record below, and the last arguments of each function.
struct Hook {
    below: AllocatorRecord,
    malloc_size: AtomicUsize,
    calloc_nelem: AtomicUsize,
    calloc_elsize: AtomicUsize,
    realloc_ptr: AtomicUsize,
    realloc_new_size: AtomicUsize,
    free_ptr: AtomicUsize,
}

impl Hook {
    fn over(below: AllocatorRecord) -> &'static Self {
        let zero = || AtomicUsize::new(0);
        Box::leak(Box::new(Self {
            below,
            malloc_size: zero(),
            calloc_nelem: zero(),
            calloc_elsize: zero(),
            realloc_ptr: zero(),
            realloc_new_size: zero(),
            free_ptr: zero(),
        }))
    }

    fn record(&'static self) -> AllocatorRecord {
        let ctx: *mut c_void = std::ptr::from_ref(self).cast_mut().cast();
        let c = PyMemAllocatorEx {
            ctx,
            malloc: Some(malloc),
            calloc: Some(calloc),
            realloc: Some(realloc),
            free: Some(free),
        };
        // SAFETY: 1. the functions expect a hook. 2. they pass on to a record. 3. their state is atomic.
        unsafe { AllocatorRecord::from_c(c, ThreadSafety::AnyThread) }.unwrap()
    }
}

fn address(ptr: Option<NonNull<u8>>) -> usize {
    ptr.map_or(0, |ptr| ptr.addr().get())
}

/// # Safety
///
/// 1. `ctx` came from a `&'static Hook`.
unsafe fn hook(ctx: *mut c_void) -> &'static Hook {
    // SAFETY: by 1.
    unsafe { &*ctx.cast::<Hook>() }
}

unsafe extern "C" fn malloc(ctx: *mut c_void, size: usize) -> Option<NonNull<u8>> {
    // SAFETY: 1. the context of `Hook::record`.
    let hook = unsafe { hook(ctx) };
    hook.malloc_size.store(size, Ordering::Relaxed);
    hook.below.malloc(size)
}

unsafe extern "C" fn calloc(ctx: *mut c_void, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
    // SAFETY: 1. the context of `Hook::record`.
    let hook = unsafe { hook(ctx) };
    hook.calloc_nelem.store(nelem, Ordering::Relaxed);
    hook.calloc_elsize.store(elsize, Ordering::Relaxed);
    hook.below.calloc(nelem, elsize)
}

unsafe extern "C" fn realloc(
    ctx: *mut c_void,
    ptr: Option<NonNull<u8>>,
    new_size: usize,
) -> Option<NonNull<u8>> {
    // SAFETY: 1. the context of `Hook::record`.
    let hook = unsafe { hook(ctx) };
    hook.realloc_ptr.store(address(ptr), Ordering::Relaxed);
    hook.realloc_new_size.store(new_size, Ordering::Relaxed);
    // SAFETY: the caller's duties.
    unsafe { hook.below.realloc(ptr, new_size) }
}

unsafe extern "C" fn free(ctx: *mut c_void, ptr: Option<NonNull<u8>>) {
    // SAFETY: 1. the context of `Hook::record`.
    let hook = unsafe { hook(ctx) };
    hook.free_ptr.store(address(ptr), Ordering::Relaxed);
    // SAFETY: the caller's duties.
    unsafe { hook.below.free(ptr) };
}

#[rstest]
fn contexts_and_arguments_arrive(#[values(Domain::Raw, Domain::Mem, Domain::Obj)] domain: Domain) {
    let domains = domains();
    let allocator = domains.get(domain);
    let below = domains.get_allocator(domain);
    let hook = Hook::over(below);
    // SAFETY: the hook passes blocks through as they are.
    unsafe { domains.wrap_allocator(domain, |_| hook.record()) };
    assert_eq!(
        domains.get_allocator(domain).to_c().ctx,
        std::ptr::from_ref(hook).cast_mut().cast()
    );

    let block = allocator.malloc(42);
    assert_eq!(hook.malloc_size.load(Ordering::Relaxed), 42);
    // SAFETY: live, of this domain; the old pointer is not used again.
    let block2 = unsafe { allocator.realloc(block, 200) };
    assert_eq!(hook.realloc_ptr.load(Ordering::Relaxed), address(block));
    assert_eq!(hook.realloc_new_size.load(Ordering::Relaxed), 200);
    // SAFETY: live, of this domain, not used again.
    unsafe { allocator.free(block2) };
    assert_eq!(hook.free_ptr.load(Ordering::Relaxed), address(block2));
    let block = allocator.calloc(2, 13);
    assert_eq!(hook.calloc_nelem.load(Ordering::Relaxed), 2);
    assert_eq!(hook.calloc_elsize.load(Ordering::Relaxed), 13);
    // SAFETY: live, of this domain, not used again.
    unsafe { allocator.free(block) };
    // A null pointer is passed down, a request that is too large is not.
    // SAFETY: nothing is freed.
    unsafe { allocator.free(None) };
    assert_eq!(hook.free_ptr.load(Ordering::Relaxed), 0);
    assert_eq!(allocator.malloc(usize::MAX), None);
    assert_eq!(allocator.calloc(usize::MAX / 2, 3), None);
    // SAFETY: nothing is resized.
    assert_eq!(unsafe { allocator.realloc(None, usize::MAX) }, None);
    assert_eq!(hook.malloc_size.load(Ordering::Relaxed), 42);
    assert_eq!(hook.calloc_nelem.load(Ordering::Relaxed), 2);
    assert_eq!(hook.realloc_new_size.load(Ordering::Relaxed), 200);

    conformance(&allocator);
    assert_eq!(domains.set_allocator(domain, below), Ok(hook.record()));
}

#[test]
fn a_rust_allocator_replaces_before_the_first_use() {
    static COUNTING: Counting<LibcMalloc> = Counting::new(LibcMalloc);
    let domains = domains();
    domains.set_allocator(Domain::Mem, AllocatorRecord::new(&COUNTING)).unwrap();
    conformance(&domains.get(Domain::Mem));
    let counts = COUNTING.counts();
    assert!(counts.calls() > 0);
    assert_eq!(counts.live_blocks, 0);
}

/// The failure of every single allocation of a program, in each domain: null reaches the caller, nothing is lost.
#[rstest]
fn every_failure_point(
    #[values(Domain::Raw, Domain::Mem, Domain::Obj)] domain: Domain,
    #[values(AllocatorName::Default, AllocatorName::Debug)] name: AllocatorName,
) {
    let domains = Domains::new(crate::profile(), Some(name)).unwrap();
    let counting: &'static Counting<AllocatorRecord> =
        Box::leak(Box::new(Counting::new(domains.get_allocator(domain))));
    let failing: &'static FailAfter<&'static Counting<AllocatorRecord>> =
        Box::leak(Box::new(FailAfter::new(counting, usize::MAX)));
    // SAFETY: both pass blocks through as they are.
    unsafe { domains.wrap_allocator(domain, |_| AllocatorRecord::new(failing)) };
    let allocator = domains.get(domain);
    let mut n = 0;
    loop {
        failing.set(n);
        let one = allocator.malloc(100);
        let two = allocator.calloc(3, 1_000);
        // SAFETY: `one` is live or none; the old pointer is not used after a success.
        let moved = unsafe { allocator.realloc(one, 5_000) };
        for block in [moved.or(one), two] {
            // SAFETY: live or none, of this domain, not used again.
            unsafe { allocator.free(block) };
        }
        assert_eq!(counting.counts().live_blocks, 0);
        if failing.failures() == 0 {
            break;
        }
        assert!([one, two, moved].contains(&None));
        n += 1;
    }
    assert_eq!(n, 3);
}

/// The record below every layer fails at each call of a program in all domains: the pools and the hooks hand null on, and
/// everything goes back.
#[rstest]
fn every_failure_point_of_what_lies_below(
    #[values("malloc", "pymalloc", "malloc_debug", "pymalloc_debug", "mimalloc_debug")] name: &str,
    #[values(true, false)] lasting: bool,
) {
    let mut ops = malloc_trace::generate::random(41, 80, 12_000);
    // What the pools ask the record below for: no bytes, and blocks that outgrow them.
    ops.extend((200..218).flat_map(|slot| {
        let domain = Domain::ALL[slot as usize % 3];
        [
            Op::malloc(slot, domain, 300),
            Op::realloc(slot, domain, 20_000),
            Op::calloc(slot + 100, domain, 0),
        ]
    }));
    let mut start = 0;
    loop {
        let Ok(domains) = Domains::new(crate::profile(), name.parse().ok()) else { return };
        let failing: &'static FailAfter<Counting<LibcMalloc>> =
            Box::leak(Box::new(FailAfter::new(Counting::new(LibcMalloc), 0)));
        failing.set_window(start, if lasting { usize::MAX } else { start + 1 });
        domains.set_allocator(Domain::Raw, AllocatorRecord::new(failing)).unwrap();
        if domains.row().debug() {
            domains.setup_debug_hooks().expect("hooks over a new base");
        }
        let [raw, mem, obj] = Domain::ALL.map(|domain| domains.get(domain));
        let summary = malloc_trace::run_domains(&ops, [&raw, &mem, &obj]).expect("no fault");
        assert_eq!(failing.inner().counts().live_blocks, 0, "every block went back");
        if failing.failures() == 0 {
            assert_eq!(summary.failed, 0);
            break;
        }
        start += 1;
    }
    assert!(start >= 20, "the record is called {start} times");
}
