//! Rows without debug hooks that have guard pages for one block in N.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use malloc_api::Malloc;
use malloc_trace::{generate, run_domains};
use memdebug::{Host, Options, Violation};
use pymem_domains::{
    AllocatorName as N, AllocatorRecord, Build, DebugConfig, Domain, Domains, Profile,
    SetAllocatorError, Version,
};
#[cfg(feature = "mimalloc")]
use rstest::rstest;

static SEEN: AtomicUsize = AtomicUsize::new(0);

fn count(_: &Violation) {
    SEEN.fetch_add(1, Relaxed);
}

fn options(text: &str) -> Options {
    text.parse().expect("an option's word")
}

fn sampled(build: Build, name: N, text: &str) -> Domains {
    let profile = Profile::new(Version::NEWEST, build, true, true, false).expect("a profile");
    let debug = DebugConfig::new().with_host(Host::new().with_handler(count));
    let debug = debug.with_options(options(text));
    assert!(debug.samples());
    Domains::with_debug(profile, Some(name), debug).expect("a row")
}

fn program_without_a_bug(build: Build, name: N) {
    for text in ["guard=1/1", "guard=1/3,backtrace=2"] {
        let domains = sampled(build, name, text);
        assert_eq!(domains.current_name(), Some(name), "guard pages change no name");
        let all = Domain::ALL.map(|domain| domains.get(domain));
        let [raw, mem, obj] = &all;
        run_domains(&generate::random(5, 10_000, 12_000), [raw, mem, obj]).unwrap();
        assert_eq!(SEEN.load(Relaxed), 0);
    }
}

#[test]
fn programs_without_a_bug() {
    program_without_a_bug(Build::Gil, N::Malloc);
}

#[cfg(feature = "mimalloc")]
#[rstest]
fn programs_without_a_bug_over_heaps(#[values(Build::Gil, Build::FreeThreaded)] build: Build) {
    program_without_a_bug(build, N::Mimalloc);
}

/// Large blocks of mem and obj are raw's blocks where pools serve: they must not be guarded twice, as raw's.
#[cfg(feature = "pymalloc")]
#[test]
fn programs_without_a_bug_over_pools() {
    program_without_a_bug(Build::Gil, N::Pymalloc);
}

#[test]
fn options_that_need_hooks_leave_a_row_without_them_alone() {
    for text in ["", "strict", "guard=1/9,strict", "backtrace=3"] {
        let debug = DebugConfig::new().with_options(options(text));
        assert!(!debug.samples(), "{text}");
        let profile = Profile::new(Version::NEWEST, Build::Gil, true, true, false).unwrap();
        let domains = Domains::with_debug(profile, Some(N::Malloc), debug).unwrap();
        let plain = Domains::new(profile, Some(N::Malloc)).unwrap();
        let raw = domains.get_allocator(Domain::Raw);
        assert_eq!(raw, plain.get_allocator(Domain::Raw), "{text}: the C library's own record");
    }
}

/// The hooks go over guard pages as over any allocator, and the name is that of the row with hooks.
#[test]
fn hooks_over_guard_pages() {
    let profile = Profile::new(Version::NEWEST, Build::Gil, true, true, false).unwrap();
    let debug = DebugConfig::new().with_options(options("guard=1/2"));
    let domains = Domains::with_debug(profile, Some(N::Malloc), debug).unwrap();
    domains.setup_debug_hooks().unwrap();
    assert_eq!(domains.current_name(), Some(N::MallocDebug));
    let [raw, mem, obj] = &Domain::ALL.map(|domain| domains.get(domain));
    run_domains(&generate::random(6, 5000, 12_000), [raw, mem, obj]).unwrap();
}

/// A base that is set later gets guard pages before its first block, and none after it.
#[test]
fn guard_pages_over_an_allocator_that_was_set() {
    let domains = sampled(Build::Gil, N::Malloc, "guard=1/1");
    let base = AllocatorRecord::leak(malloc_api::LibcMalloc);
    domains.set_allocator(Domain::Mem, base).unwrap();
    assert_eq!(domains.get_allocator(Domain::Mem), base);
    domains.setup_samplers().unwrap();
    assert_ne!(domains.get_allocator(Domain::Mem), base);
    let block = domains.get(Domain::Mem).malloc(100);
    // SAFETY: live, and not used again.
    unsafe { domains.get(Domain::Mem).free(block) };
    assert_eq!(domains.setup_samplers(), Ok(()), "it has them");
    let late = Domains::new(domains.profile(), Some(N::Malloc)).unwrap();
    late.start();
    let error = SetAllocatorError::AfterFirstAllocation { domain: Domain::Raw };
    assert_eq!(late.setup_samplers(), Err(error));
}
