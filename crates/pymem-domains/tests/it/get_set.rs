//! Get, set and debug hooks: what is allowed when, and that no order of calls loses or doubles a record.

use std::cell::Cell;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use malloc_api::testing::{Counting, conformance};
use malloc_api::{LibcMalloc, Malloc};
use proptest::prelude::*;
use pymem_domains::{
    AllocatorName as N, AllocatorRecord, Build, Domain, Domains, Profile, PyMemAllocatorEx,
    RecordError, SetAllocatorError, ThreadSafety, Version,
};
use rstest::rstest;

/// Domains on the C library, which every build has.
fn libc_domains(name: N) -> Domains {
    let profile = Profile::new(Version::NEWEST, Build::Gil, false, false, false).unwrap();
    Domains::new(profile, Some(name)).unwrap()
}

fn base() -> AllocatorRecord {
    AllocatorRecord::leak(Counting::new(LibcMalloc))
}

fn touch(domains: Domains, domain: Domain) {
    let block = domains.get(domain).malloc(8);
    // SAFETY: live, of this domain, not used again.
    unsafe { domains.get(domain).free(block) };
}

fn wrap(domains: Domains, domain: Domain) -> AllocatorRecord {
    // SAFETY: `Passing` passes blocks through as they are.
    unsafe { domains.wrap_allocator(domain, |inner| AllocatorRecord::leak(Passing(inner))) }
}

#[rstest]
fn what_is_set_is_what_is_got(
    #[values(Domain::Raw, Domain::Mem, Domain::Obj)] domain: Domain,
    #[values(N::Malloc, N::MallocDebug)] name: N,
) {
    let domains = libc_domains(name);
    let before = Domain::ALL.map(|domain| domains.get_allocator(domain));
    let record = base();
    assert_eq!(domains.set_allocator(domain, record), Ok(before[domain.index()]));
    assert_eq!(domains.get_allocator(domain), record);
    for other in Domain::ALL.into_iter().filter(|other| *other != domain) {
        assert_eq!(domains.get_allocator(other), before[other.index()]);
    }
    assert_eq!(domains.current_name(), None);
    assert_eq!(domains.set_allocator(domain, before[domain.index()]), Ok(record));
    assert_eq!(domains.current_name(), Some(name));
    conformance(&domains.get(domain));
}

#[test]
fn the_first_allocation_fixes_the_base() {
    let domains = libc_domains(N::Malloc);
    let mem = domains.get(Domain::Mem);
    // SAFETY: nothing is freed.
    unsafe { mem.free(None) };
    domains.set_allocator(Domain::Mem, base()).unwrap();
    let used = domains.get_allocator(Domain::Mem);
    touch(domains, Domain::Mem);
    let error = SetAllocatorError::AfterFirstAllocation { domain: Domain::Mem };
    assert_eq!(domains.set_allocator(Domain::Mem, base()), Err(error));
    assert_eq!(domains.get_allocator(Domain::Mem), used);
    assert_eq!(domains.set_allocator(Domain::Mem, used), Ok(used));
    // The other domains are still free to change, until they are started.
    domains.set_allocator(Domain::Raw, base()).unwrap();
    domains.start();
    let error = SetAllocatorError::AfterFirstAllocation { domain: Domain::Raw };
    assert_eq!(domains.set_allocator(Domain::Raw, base()), Err(error));
    assert_eq!(
        error.to_string(),
        "the raw domain has handed out blocks, which the new allocator could not take back; set it before the first \
         allocation, or wrap the current allocator"
    );
}

#[rstest]
#[case::malloc(|d: Domains| { let _ = d.get(Domain::Obj).malloc(1); })]
#[case::calloc(|d: Domains| { let _ = d.get(Domain::Obj).calloc(1, 1); })]
// SAFETY: no block is resized.
#[case::realloc(|d: Domains| { let _ = unsafe { d.get(Domain::Obj).realloc(None, 1) }; })]
fn every_way_to_allocate_is_a_first_use(#[case] allocate: fn(Domains)) {
    let domains = libc_domains(N::Malloc);
    allocate(domains);
    let error = SetAllocatorError::AfterFirstAllocation { domain: Domain::Obj };
    assert_eq!(domains.set_allocator(Domain::Obj, base()), Err(error));
}

#[test]
fn wrappers_go_on_and_off_at_any_time() {
    let domains = libc_domains(N::MallocDebug);
    let mem = domains.get(Domain::Mem);
    let hooks = domains.get_allocator(Domain::Mem);
    let before = mem.malloc(10);
    assert_eq!(wrap(domains, Domain::Mem), hooks);
    let wrapper = domains.get_allocator(Domain::Mem);
    assert_eq!(wrap(domains, Domain::Mem), wrapper);
    let during = mem.malloc(10);
    // SAFETY: live, and served by every layer; not used again.
    unsafe { mem.free(before) };
    domains.set_allocator(Domain::Mem, wrapper).unwrap();
    domains.set_allocator(Domain::Mem, hooks).unwrap();
    // SAFETY: as above.
    unsafe { mem.free(during) };
    assert_eq!(domains.get_allocator(Domain::Mem), hooks);
    // A wrapper that was there before serves the same blocks, so it may come back.
    domains.set_allocator(Domain::Mem, wrapper).unwrap();
    domains.setup_debug_hooks().unwrap();
    assert_eq!(domains.get_allocator(Domain::Mem), wrapper);
}

#[test]
fn a_wrapper_comes_back_with_what_it_lay_on() {
    let domains = libc_domains(N::MallocDebug);
    wrap(domains, Domain::Mem);
    let wrapper = domains.get_allocator(Domain::Mem);
    domains.set_allocator(Domain::Mem, base()).unwrap();
    domains.set_allocator(Domain::Mem, wrapper).unwrap();
    domains.setup_debug_hooks().unwrap();
    assert_eq!(domains.get_allocator(Domain::Mem), wrapper);
    // It lies on mem's hooks, so no other domain can have it.
    let error = SetAllocatorError::WrongDomain { domain: Domain::Obj, owner: Domain::Mem };
    assert_eq!(domains.set_allocator(Domain::Obj, wrapper), Err(error));
    assert_eq!(
        error.to_string(),
        "the record lies on the mem domain's allocator; obj needs one of its own: wrap obj's allocator"
    );
}

#[test]
fn hooks_are_set_up_once() {
    let domains = libc_domains(N::Malloc);
    domains.setup_debug_hooks().unwrap();
    let hooks = Domain::ALL.map(|domain| domains.get_allocator(domain));
    assert_eq!(domains.current_name(), Some(N::MallocDebug));
    domains.setup_debug_hooks().unwrap();
    assert_eq!(Domain::ALL.map(|domain| domains.get_allocator(domain)), hooks);
    // Over a wrapper that is over the hooks: CPython wraps the wrapper and then calls itself for ever.
    wrap(domains, Domain::Mem);
    let wrapper = domains.get_allocator(Domain::Mem);
    domains.setup_debug_hooks().unwrap();
    assert_eq!(domains.get_allocator(Domain::Mem), wrapper);
    conformance(&domains.get(Domain::Mem));
}

#[test]
fn a_replacement_takes_the_hooks_off() {
    let domains = libc_domains(N::MallocDebug);
    let replacement = base();
    domains.set_allocator(Domain::Obj, replacement).unwrap();
    domains.setup_debug_hooks().unwrap();
    assert_ne!(domains.get_allocator(Domain::Obj), replacement);
    assert_eq!(domains.current_name(), None);
    conformance(&domains.get(Domain::Obj));
}

#[test]
fn hooks_come_too_late_after_the_first_block() {
    let domains = libc_domains(N::Malloc);
    touch(domains, Domain::Obj);
    let error = SetAllocatorError::AfterFirstAllocation { domain: Domain::Obj };
    assert_eq!(domains.setup_debug_hooks(), Err(error));
    // All or nothing: the unused domains have none either.
    assert_eq!(domains.current_name(), Some(N::Malloc));
}

#[test]
fn hooks_serve_their_own_domain_only() {
    let domains = libc_domains(N::MallocDebug);
    for (domain, owner) in [(Domain::Obj, Domain::Mem), (Domain::Raw, Domain::Obj)] {
        let hooks = domains.get_allocator(owner);
        let error = SetAllocatorError::WrongDomain { domain, owner };
        assert_eq!(domains.set_allocator(domain, hooks), Err(error));
    }
    // Their own hooks come back, over what they were over.
    let hooks = domains.get_allocator(Domain::Mem);
    domains.set_allocator(Domain::Mem, base()).unwrap();
    domains.set_allocator(Domain::Mem, hooks).unwrap();
    assert_eq!(domains.current_name(), Some(N::MallocDebug));
    assert_eq!(domains.setup_debug_hooks(), Ok(()));
    assert_eq!(domains.get_allocator(Domain::Mem), hooks);
}

#[test]
fn a_c_record_must_be_whole_and_thread_safe() {
    let whole = libc_domains(N::Malloc).get_allocator(Domain::Raw).to_c();
    let missing = [
        ("malloc", PyMemAllocatorEx { malloc: None, ..whole }),
        ("calloc", PyMemAllocatorEx { calloc: None, ..whole }),
        ("realloc", PyMemAllocatorEx { realloc: None, ..whole }),
        ("free", PyMemAllocatorEx { free: None, ..whole }),
    ];
    for (name, record) in missing {
        // SAFETY: 1-3: the other functions are those of a record.
        let result = unsafe { AllocatorRecord::from_c(record, ThreadSafety::AnyThread) };
        assert_eq!(result, Err(RecordError::NullFunction(name)));
    }
    // SAFETY: 1-3: the functions are those of a record.
    let result = unsafe { AllocatorRecord::from_c(whole, ThreadSafety::OneAtATime) };
    assert_eq!(result, Err(RecordError::NotThreadSafe));
    // SAFETY: 1-3: the functions are those of a record.
    let result = unsafe { AllocatorRecord::from_c(whole, ThreadSafety::AnyThread) };
    assert_eq!(result, Ok(libc_domains(N::Malloc).get_allocator(Domain::Raw)));
    assert!(PyMemAllocatorEx::NULL.ctx.is_null() && PyMemAllocatorEx::NULL.free.is_none());
}

/// One call of the interface.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Set a record that no domain has seen.
    SetNew(Domain),
    /// Set a record that an earlier step got or set, of any domain.
    SetSeen(Domain, prop::sample::Index),
    Wrap(Domain),
    SetupHooks,
    Touch(Domain),
}

fn step() -> impl Strategy<Value = Step> {
    let domain = || prop::sample::select(&Domain::ALL);
    prop_oneof![
        2 => domain().prop_map(Step::SetNew),
        4 => (domain(), any::<prop::sample::Index>()).prop_map(|(d, i)| Step::SetSeen(d, i)),
        2 => domain().prop_map(Step::Wrap),
        3 => Just(Step::SetupHooks),
        1 => domain().prop_map(Step::Touch),
    ]
}

/// What a new block of a domain passes.
#[derive(Debug, PartialEq, Eq)]
struct Passed {
    /// Layers of hooks: the bytes that the base is asked for beyond the request, by 24.
    hooks: usize,
    wrappers: usize,
}

fn passed(
    domains: Domains,
    domain: Domain,
    bases: &[(AllocatorRecord, &'static Last)],
) -> (Passed, NonNull<u8>) {
    WRAPPERS_PASSED.set(0);
    let block = domains.get(domain).malloc(1_000).unwrap();
    let asked = bases.iter().map(|(_, last)| last.take()).max().unwrap();
    assert_eq!((asked - 1_000) % 24, 0);
    (Passed { hooks: (asked - 1_000) / 24, wrappers: WRAPPERS_PASSED.get() }, block)
}

thread_local! {
    static WRAPPERS_PASSED: Cell<usize> = const { Cell::new(0) };
}

/// A wrapper that only counts. Its one field makes each record of it another one.
struct Passing(AllocatorRecord);

// SAFETY: 1-5: every call is passed on.
unsafe impl Malloc for Passing {
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        WRAPPERS_PASSED.set(WRAPPERS_PASSED.get() + 1);
        self.0.malloc(size)
    }

    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        self.0.calloc(nelem, elsize)
    }

    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        // SAFETY: the caller's duties 1 and 2.
        unsafe { self.0.realloc(ptr, new_size) }
    }

    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        // SAFETY: the caller's duties 1 and 2.
        unsafe { self.0.free(ptr) }
    }
}

/// An allocator on the C library that remembers the last size it was asked for.
struct Last(AtomicUsize);

impl Last {
    fn take(&self) -> usize {
        self.0.swap(0, Relaxed)
    }
}

// SAFETY: 1-5: every call is passed on to `LibcMalloc`.
unsafe impl Malloc for Last {
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        self.0.store(size, Relaxed);
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

fn new_base(bases: &mut Vec<(AllocatorRecord, &'static Last)>) -> AllocatorRecord {
    let last: &'static Last = Box::leak(Box::new(Last(AtomicUsize::new(0))));
    bases.push((AllocatorRecord::new(last), last));
    bases.last().unwrap().0
}

proptest! {
    /// In any order of calls: a refused call changes nothing; an accepted set is what is got; blocks made before a
    /// change are freed after it; and a block passes every wrapper that it should and no other, and the hooks at most
    /// once, exactly once after a setup.
    #[test]
    fn no_order_of_calls_loses_or_doubles_a_record(steps in prop::collection::vec(step(), 1..40)) {
        let domains = libc_domains(N::Malloc);
        let mut bases = Vec::new();
        for domain in Domain::ALL {
            domains.set_allocator(domain, new_base(&mut bases)).unwrap();
        }
        // Every record that was got or set, and how many wrappers it has with those that it lies on.
        let mut seen: Vec<(AllocatorRecord, usize)> =
            bases.iter().map(|(record, _)| (*record, 0)).collect();
        let mut live: Vec<(Domain, NonNull<u8>)> = Vec::new();
        for step in steps {
            let before = Domain::ALL.map(|domain| domains.get_allocator(domain));
            let wrappers = |seen: &[(AllocatorRecord, usize)], of: AllocatorRecord| {
                seen.iter().find(|(record, _)| *record == of).unwrap().1
            };
            let mut expected = before;
            match step {
                Step::SetNew(domain) => {
                    let record = new_base(&mut bases);
                    if domains.set_allocator(domain, record).is_ok() {
                        expected[domain.index()] = record;
                        seen.push((record, 0));
                        prop_assert!(live.iter().all(|(of, _)| *of != domain));
                    } else {
                        bases.pop();
                    }
                }
                Step::SetSeen(domain, index) => {
                    let (record, _) = seen[index.index(seen.len())];
                    if domains.set_allocator(domain, record).is_ok() {
                        expected[domain.index()] = record;
                    }
                }
                Step::Wrap(domain) => {
                    wrap(domains, domain);
                    let record = domains.get_allocator(domain);
                    expected[domain.index()] = record;
                    prop_assert_ne!(expected, before);
                    seen.push((record, wrappers(&seen, before[domain.index()]) + 1));
                }
                Step::SetupHooks => {
                    if domains.setup_debug_hooks().is_ok() {
                        expected = Domain::ALL.map(|domain| domains.get_allocator(domain));
                        for (record, below) in expected.into_iter().zip(before) {
                            seen.push((record, wrappers(&seen, below)));
                        }
                        let again = domains.setup_debug_hooks();
                        prop_assert_eq!(again, Ok(()));
                    }
                }
                Step::Touch(domain) => {
                    let (passed, block) = passed(domains, domain, &bases);
                    prop_assert!(passed.hooks <= 1, "{} layers of hooks", passed.hooks);
                    prop_assert_eq!(passed.wrappers, wrappers(&seen, before[domain.index()]));
                    live.push((domain, block));
                }
            }
            let now = Domain::ALL.map(|domain| domains.get_allocator(domain));
            prop_assert_eq!(now, expected);
        }
        let hooked = domains.setup_debug_hooks().is_ok();
        for (domain, block) in live {
            // SAFETY: live, of this domain, not used again. A lost record would make this a free of a foreign block.
            unsafe { domains.get(domain).free(Some(block)) };
        }
        for domain in Domain::ALL {
            let (Passed { hooks, .. }, block) = passed(domains, domain, &bases);
            prop_assert!(hooks <= 1, "{} layers of hooks", hooks);
            prop_assert!(!hooked || hooks == 1);
            // SAFETY: live, of this domain, not used again.
            unsafe { domains.get(domain).free(Some(block)) };
        }
    }
}
