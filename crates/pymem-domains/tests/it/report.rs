//! Statistics, descriptions and releases.

use malloc_api::{LibcMalloc, Malloc, testing::Counting};
use pymem_domains::{
    AllocatorName as N, AllocatorRecord, Build, DebugConfig, Domain, Domains, HeapStats, Profile,
    ReleaseLevel, ThreadSafety, Version,
};
use rstest::rstest;

fn libc_domains(name: N) -> Domains {
    let profile = Profile::new(Version::V3_13, Build::Gil, false, false, false).unwrap();
    Domains::new(profile, Some(name)).unwrap()
}

#[test]
fn a_description_follows_every_change() {
    let domains = libc_domains(N::Default);
    let text = domains.describe().to_string();
    let (first, rest) = text.split_once('\n').unwrap();
    assert!(first.contains("table of 3.13 GIL release build without pymalloc and mimalloc"));
    assert_eq!(
        rest,
        "configured as default, which is malloc\n\
         raw: malloc, not used yet\n\
         mem: malloc, not used yet\n\
         obj: malloc, not used yet\n\
         threads: every domain may be called from any thread\n"
    );
    domains.set_allocator(Domain::Obj, AllocatorRecord::leak(Counting::new(LibcMalloc))).unwrap();
    domains.setup_debug_hooks().unwrap();
    // SAFETY: `Counting` passes blocks through as they are, and the domain has handed out none yet.
    unsafe {
        domains.wrap_allocator(Domain::Mem, |inner| AllocatorRecord::leak(Counting::new(inner)))
    };
    domains.start();
    let text = domains.describe().to_string();
    assert_eq!(
        text.split_once('\n').unwrap().1,
        "configured as default, since changed\n\
         raw: malloc + debug, in use\n\
         mem: malloc + debug + 1 wrapper, in use\n\
         obj: custom + debug, in use\n\
         threads: every domain may be called from any thread\n"
    );
}

#[test]
fn a_description_says_who_may_call() {
    let debug = DebugConfig::new();
    // SAFETY: 1: nobody calls.
    let domains = unsafe { Domains::under_lock(Profile::NEWEST, None, debug) }.unwrap();
    let description = domains.describe();
    assert_eq!(description.threads, ThreadSafety::OneAtATime);
    assert!(description.to_string().ends_with(
        "\nthreads: raw may be called from any thread, mem and obj under one lock of the callers'\n"
    ));
}

#[test]
fn the_c_library_has_no_statistics_of_its_own() {
    let domains = libc_domains(N::Malloc);
    let block = domains.get(Domain::Mem).malloc(100);
    let stats = domains.stats();
    assert_eq!((stats.to_string().as_str(), domains.allocated_blocks()), ("", Some(0)));
    assert!(stats.resident_bytes > 0);
    // SAFETY: live, of this domain, not used again.
    unsafe { domains.get(Domain::Mem).free(block) };
}

#[rstest]
#[case::mimalloc_2_1(Version::V3_14, 16_384, 131_072)]
#[case::mimalloc_2_5(Version::V3_14_10, 8_192, 65_536)]
fn heap_statistics_print_as_cpythons(
    #[case] version: Version,
    #[case] small: usize,
    #[case] medium: usize,
) {
    let mut stats = HeapStats::new(version);
    stats.allocated_blocks = 1;
    stats.allocated_bytes = 20;
    stats.allocated_bytes_with_overhead = 300;
    stats.reserved_bytes = 4_000;
    stats.committed_bytes = 50_000;
    assert_eq!(
        stats.to_string(),
        format!(
            "Small block threshold = {small}, in 73 size classes.\n\
             Medium block threshold = {medium}\n\
             Large object max size = 16777216\n    \
             Allocated Blocks: 1\n    \
             Allocated Bytes: 20\n    \
             Allocated Bytes w/ Overhead: 300\n    \
             Bytes Reserved: 4000\n    \
             Bytes Committed: 50000\n"
        )
    );
}

#[test]
fn release_levels_have_numbers() {
    for (number, level) in [
        (i32::MIN, ReleaseLevel::Arenas),
        (0, ReleaseLevel::Arenas),
        (1, ReleaseLevel::Pools),
        (2, ReleaseLevel::Pages),
        (i32::MAX, ReleaseLevel::Pages),
    ] {
        assert_eq!(ReleaseLevel::from_number(number), level);
    }
}

/// Fills a domain with `count` blocks of `size` bytes, writes to all, and frees them.
fn fill_and_free(domains: Domains, count: usize, size: usize) {
    let mem = domains.get(Domain::Mem);
    let blocks: Vec<_> = (0..count).map(|_| mem.malloc(size).unwrap()).collect();
    for block in blocks {
        // SAFETY: `size` bytes.
        unsafe { block.write_bytes(1, size) };
        // SAFETY: live, of this domain, not used again.
        unsafe { mem.free(Some(block)) };
    }
}

#[test]
fn the_c_librarys_memory_goes_back() {
    let domains = libc_domains(N::Malloc);
    fill_and_free(domains, 40_000, 1_000);
    let bytes = domains.release(ReleaseLevel::Pages);
    assert!(bytes <= 1 << 32);
    assert_eq!(domains.release(ReleaseLevel::Arenas), 0);
}

#[cfg(feature = "pymalloc")]
mod pymalloc {
    use super::*;

    fn pool_domains() -> Domains {
        let profile = Profile::new(Version::V3_13, Build::Gil, true, false, false).unwrap();
        Domains::new(profile, Some(N::Pymalloc)).unwrap()
    }

    #[test]
    fn blocks_are_counted_in_both_domains_that_share_the_pools() {
        let domains = pool_domains();
        let blocks = [
            (Domain::Mem, domains.get(Domain::Mem).malloc(100)),
            (Domain::Obj, domains.get(Domain::Obj).malloc(100)),
            // Large and zero-size blocks are the raw domain's, and counted too.
            (Domain::Obj, domains.get(Domain::Obj).malloc(100_000)),
            (Domain::Obj, domains.get(Domain::Obj).malloc(0)),
        ];
        assert_eq!(domains.allocated_blocks(), Some(4));
        let stats = domains.stats();
        assert!(stats.to_string().starts_with("Small block threshold = "), "{stats}");
        assert!(stats.to_string().contains("# arenas allocated total           ="), "{stats}");
        assert_eq!(stats.pymalloc.unwrap().allocated_blocks(), 4);
        assert_eq!(stats.mimalloc, None);
        for (domain, block) in blocks {
            // SAFETY: live, of this domain, not used again.
            unsafe { domains.get(domain).free(block) };
        }
        assert_eq!(domains.allocated_blocks(), Some(0));
        // The raw domain served the large ones.
        assert!(domains.describe().domains[0].used);
    }

    #[test]
    fn a_wrapper_of_raw_sees_what_the_pools_pass_on() {
        let domains = pool_domains();
        let counting: &'static Counting<AllocatorRecord> =
            Box::leak(Box::new(Counting::new(domains.get_allocator(Domain::Raw))));
        domains.set_allocator(Domain::Raw, AllocatorRecord::new(counting)).unwrap();
        let obj = domains.get(Domain::Obj);
        let small = obj.malloc(64);
        assert_eq!(counting.counts().malloc, 0);
        let large = obj.malloc(100_000);
        assert_eq!(counting.counts().malloc, 1);
        // SAFETY: live, of this domain, not used again.
        unsafe { obj.free(small) };
        // SAFETY: live, of this domain, not used again.
        unsafe { obj.free(large) };
        assert_eq!(counting.counts().live_blocks, 0);
    }

    #[test]
    fn empty_arenas_go_back_and_are_counted() {
        // Large blocks lie in one span a process: what other tests have freed of them would go back too.
        malloc_api::testing::alone(
            "report::pymalloc::empty_arenas_go_back_and_are_counted",
            || {
                let domains = pool_domains();
                fill_and_free(domains, 100_000, 256);
                let before = domains.stats().pymalloc.unwrap().arenas_current;
                let bytes = domains.release(ReleaseLevel::Arenas);
                let after = domains.stats().pymalloc.unwrap().arenas_current;
                assert!(after <= 1, "{after} arenas are left of {before}");
                // An arena that empties while cached blocks go back to their pools is not counted.
                let gone = (before - after) * pymalloc_core::ARENA_BYTES;
                assert!(bytes > 0 && bytes <= gone, "{bytes} of {gone}");
            },
        );
    }

    #[test]
    fn arenas_come_through_the_record_that_was_set() {
        use std::ffi::c_void;
        use std::sync::atomic::{AtomicUsize, Ordering};

        use pymalloc_core::ArenaAllocator;

        static ALLOCATED: AtomicUsize = AtomicUsize::new(0);
        unsafe extern "C" fn alloc(ctx: *mut c_void, size: usize) -> *mut c_void {
            ALLOCATED.fetch_add(1, Ordering::Relaxed);
            assert_eq!(ctx.addr(), 7);
            // SAFETY: any size.
            unsafe { libc::malloc(size) }
        }
        unsafe extern "C" fn free(_: *mut c_void, arena: *mut c_void, _: usize) {
            // SAFETY: `alloc` made it.
            unsafe { libc::free(arena) }
        }
        let domains = pool_domains();
        let record = ArenaAllocator { ctx: std::ptr::without_provenance_mut(7), alloc, free };
        assert_ne!(domains.arena_allocator(), record);
        // SAFETY: 1. the C library is thread-safe. 2. there is no arena yet.
        unsafe { domains.set_arena_allocator(record) };
        assert_eq!(domains.arena_allocator(), record);
        fill_and_free(domains, 1_000, 100);
        assert!(ALLOCATED.load(Ordering::Relaxed) > 0);
    }

    #[test]
    fn a_hook_runs_before_each_new_arena() {
        use std::sync::atomic::{AtomicUsize, Ordering};

        static ARENAS: AtomicUsize = AtomicUsize::new(0);
        let domains = pool_domains();
        // SAFETY: 1: the hook counts and compares; 2: it aborts where the numbers differ.
        unsafe {
            domains.set_new_arena_hook(Some(|stats| {
                let before = ARENAS.fetch_add(1, Ordering::Relaxed);
                if stats.arenas_ever != before {
                    std::process::abort();
                }
            }));
        }
        fill_and_free(domains, 20_000, 256);
        assert_eq!(ARENAS.load(Ordering::Relaxed), domains.stats().pymalloc.unwrap().arenas_ever);
    }
}

#[test]
fn the_c_librarys_release_says_what_the_process_gave_back() {
    let output = crate::process::child("report::child_releases_c_blocks", &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// A child, so that no other test's thread changes what is resident.
#[test]
fn child_releases_c_blocks() {
    if !crate::process::is_child("report::child_releases_c_blocks") {
        return;
    }
    let domains = libc_domains(N::Malloc);
    let obj = domains.get(Domain::Obj);
    let blocks: Vec<_> = (0..100_000).map(|_| obj.calloc(1, 256).unwrap()).collect();
    for (index, block) in blocks.iter().enumerate() {
        // Those that stay keep the library from giving the rest back by itself.
        if index % 1_000 != 999 {
            // SAFETY: live, of this domain, not used again.
            unsafe { obj.free(Some(*block)) };
        }
    }
    assert_eq!(domains.release(ReleaseLevel::Arenas), 0);
    let bytes = domains.release(ReleaseLevel::Pages);
    assert!((10 << 20..100 << 20).contains(&bytes), "{bytes} of 25,600,000");
    for block in blocks.iter().skip(999).step_by(1_000) {
        // SAFETY: live, of this domain, not used again.
        unsafe { obj.free(Some(*block)) };
    }
}

#[cfg(feature = "mimalloc")]
mod mimalloc {
    use mimalloc_heaps::BarrierWorld;

    use super::*;

    fn heap_domains() -> Domains {
        let profile =
            Profile::new(Version::NEWEST, Build::FreeThreaded, true, true, false).unwrap();
        Domains::new(profile, Some(N::Mimalloc)).unwrap()
    }

    #[test]
    fn heaps_are_counted_while_the_world_stands_still() {
        let output = crate::process::child("report::mimalloc::child_counts", &[]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}{stderr}", String::from_utf8_lossy(&output.stdout));
    }

    /// A child, so that no other test's thread uses the heaps.
    #[test]
    fn child_counts() {
        if !crate::process::is_child("report::mimalloc::child_counts") {
            return;
        }
        let domains = heap_domains();
        assert_eq!(domains.allocated_blocks(), None);
        let world = BarrierWorld::new();
        // SAFETY: 1. this thread alone uses the heaps, and not while it stops the world. 2. it never leaves.
        let thread = std::mem::ManuallyDrop::new(unsafe { world.join() });
        let before = domains.allocated_blocks_in(&*thread).unwrap();
        let mem = domains.get(Domain::Mem).malloc(100);
        let obj = domains.get(Domain::Obj).malloc(100);
        let after = domains.allocated_blocks_in(&*thread).unwrap();
        assert_eq!(after - before, 2);
        let text = domains.stats_in(&*thread).unwrap().to_string();
        assert!(text.contains(&format!("    Allocated Blocks: {after}\n")), "{after} in {text}");
        drop(text);
        let stats = domains.stats_in(&*thread).unwrap().mimalloc.unwrap();
        assert!(stats.allocated_bytes >= 200, "{stats}");
        assert_eq!(stats.allocated_bytes_with_overhead, stats.allocated_bytes, "{stats}");
        assert!(stats.committed_bytes >= stats.allocated_bytes, "{stats}");
        assert!(stats.reserved_bytes >= stats.committed_bytes, "{stats}");
        // SAFETY: live, of this domain, not used again.
        unsafe { domains.get(Domain::Mem).free(mem) };
        // SAFETY: live, of this domain, not used again.
        unsafe { domains.get(Domain::Obj).free(obj) };
        fill_and_free(domains, 100_000, 256);
        let bytes = domains.release_in(&*thread, ReleaseLevel::Pages).unwrap();
        assert!((10 << 20..1 << 30).contains(&bytes), "{bytes} of 25,600,000");
        assert_eq!(domains.allocated_blocks_in(&*thread).unwrap(), before);
    }

    #[test]
    fn plain_blocks_of_every_thread_are_counted() {
        let output = crate::process::child("report::mimalloc::child_counts_plain_blocks", &[]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}{stderr}", String::from_utf8_lossy(&output.stdout));
    }

    /// A child, since mimalloc's default heaps are the process's.
    #[test]
    fn child_counts_plain_blocks() {
        if !crate::process::is_child("report::mimalloc::child_counts_plain_blocks") {
            return;
        }
        let profile = Profile::new(Version::V3_13, Build::Gil, true, true, false).unwrap();
        let domains = Domains::new(profile, Some(N::Mimalloc)).unwrap();
        let world = BarrierWorld::new();
        // SAFETY: 1. only this thread and those below, which it waits for, use mimalloc. 2. it never leaves.
        let this = std::mem::ManuallyDrop::new(unsafe { world.join() });
        let count = || domains.allocated_blocks_in(&*this).unwrap();
        let obj = domains.get(Domain::Obj);
        let before = count();
        let mine: Vec<_> =
            (0..5_000).map(|n| obj.malloc(n).unwrap().as_ptr().expose_provenance()).collect();
        assert_eq!(count() - before, 5_000);
        // Pages that are full, that lost their thread, and whose blocks another thread has freed.
        let theirs = std::thread::spawn(move || {
            let malloc = |n: usize| obj.malloc(n % 100).unwrap().as_ptr().expose_provenance();
            (0..5_000).map(malloc).collect::<Vec<_>>()
        });
        let theirs = theirs.join().unwrap();
        assert_eq!(count() - before, 10_000);
        for (index, block) in mine.iter().chain(&theirs).enumerate() {
            if index % 2 == 0 {
                let block = std::ptr::with_exposed_provenance_mut(*block);
                // SAFETY: live, of this domain, not used again.
                unsafe { obj.free(std::ptr::NonNull::new(block)) };
            }
        }
        assert_eq!(count() - before, 5_000);
        let stats = domains.stats_in(&*this).unwrap().mimalloc.unwrap();
        assert!(stats.allocated_bytes >= 5_000 * 8 && stats.allocated_bytes < 20 << 20, "{stats}");
        assert!(stats.committed_bytes >= stats.allocated_bytes, "{stats}");
        assert!(stats.reserved_bytes >= stats.committed_bytes, "{stats}");
        // This process has a thread that runs the tests; its fork has none but its own, where nobody has to be stopped.
        assert_eq!((domains.allocated_blocks(), domains.stats().mimalloc), (None, None));
        let alone = || {
            assert_eq!(domains.allocated_blocks(), Some(before + 5_000));
            let stats = domains.stats().mimalloc.unwrap();
            assert_eq!(stats.allocated_blocks, before + 5_000);
            // What was freed has a thread that gives it back, and touches no heap.
            let burst: Vec<_> = (0..5_000).map(|_| obj.malloc(1_000).unwrap()).collect();
            // SAFETY: live, of this domain, not used again.
            burst.into_iter().for_each(|block| unsafe { obj.free(Some(block)) });
            assert_eq!(std::fs::read_dir("/proc/self/task").unwrap().count(), 2);
            assert_eq!(domains.allocated_blocks(), Some(before + 5_000));
            let (stop, other) = std::sync::mpsc::channel::<()>();
            let waiting = std::thread::spawn(move || other.recv());
            assert_eq!(domains.allocated_blocks(), None);
            drop(stop);
            assert!(waiting.join().is_ok());
        };
        assert!(crate::forks::fork(alone), "the count of a lone thread");
    }

    #[test]
    fn the_description_has_mimallocs_version() {
        assert_eq!(heap_domains().describe().mimalloc_version.as_deref(), Some("3.3.2"));
    }
}

#[cfg(feature = "serde")]
mod json {
    use super::*;

    #[test]
    fn statistics_are_data() {
        let stats = libc_domains(N::Debug).stats();
        let json = serde_json::to_value(&stats).unwrap();
        assert_eq!(json["configuration"]["name"], "debug");
        assert_eq!(json["configuration"]["current_name"], "malloc_debug");
        assert_eq!(json["configuration"]["profile"]["version"], "3.13");
        assert_eq!(json["configuration"]["domains"][2]["domain"], "obj");
        assert_eq!(json["configuration"]["domains"][2]["debug_hooks"], true);
        assert_eq!(json["configuration"]["threads"], "any-thread");
        assert_eq!(json["pymalloc"], serde_json::Value::Null);
        assert!(json["resident_bytes"].as_u64().unwrap() > 0);
    }
}
