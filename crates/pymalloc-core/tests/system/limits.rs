//! The kernel at its limit of mappings: `munmap` of a piece of one fails, as it would make two of it.

use std::ffi::c_void;
use std::ptr;

use malloc_api::testing::alone;
use malloc_api::{LibcMalloc, Malloc, page_bytes};
use malloc_trace::{generate, run};
use pymalloc_core::{ARENA_BYTES, LocalPymalloc, POOLED_MAX, ReleaseLevel};

/// Pages of which every other one has another access, so that each is a mapping of its own.
struct Exhausted {
    start: *mut u8,
    bytes: usize,
}

impl Exhausted {
    /// Addresses for as many mappings as the kernel allows.
    fn reserve() -> Self {
        let limit = std::fs::read_to_string("/proc/sys/vm/max_map_count").expect("a limit");
        let bytes = (limit.trim().parse::<usize>().expect("a number") + 16) * page_bytes();
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at a place of the system's choice.
        let start = unsafe { libc::mmap(ptr::null_mut(), bytes, libc::PROT_NONE, flags, -1, 0) };
        assert_ne!(start, libc::MAP_FAILED);
        Self { start: start.cast(), bytes }
    }

    /// Makes mappings until the kernel has no more.
    fn fill(&self) {
        for offset in (0..self.bytes).step_by(2 * page_bytes()) {
            let page = self.start.wrapping_add(offset).cast();
            // SAFETY: a page of the mapping, which nobody uses.
            if unsafe { libc::mprotect(page, page_bytes(), libc::PROT_READ) } != 0 {
                return;
            }
        }
        panic!("the kernel has no limit");
    }
}

impl Drop for Exhausted {
    fn drop(&mut self) {
        // SAFETY: mapped by `reserve`, and nobody uses it.
        assert_eq!(unsafe { libc::munmap(self.start.cast(), self.bytes) }, 0);
    }
}

/// Puts a page behind the process's region, so that it cannot grow and each further arena is a mapping of its own.
fn block_the_region() {
    let alloc = LocalPymalloc::new(LibcMalloc);
    let block = alloc.malloc(1).expect("memory");
    let last = arenas(&alloc).into_iter().max().expect("an arena");
    let pair = 2 * ARENA_BYTES;
    let bytes = last / pair * pair + pair;
    let page = std::iter::successors(Some(bytes), |end| Some(end + pair)).map(map_page);
    assert!(page.take(32).any(|mapped| mapped), "the region ends somewhere");
    // SAFETY: live, and not used again.
    unsafe { alloc.free(Some(block)) };
}

/// Maps a page at `address`, if there is nothing.
fn map_page(address: usize) -> bool {
    let at = ptr::with_exposed_provenance_mut::<c_void>(address);
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: a new mapping, at a place where there is none.
    unsafe { libc::mmap(at, page_bytes(), access, flags, -1, 0) != libc::MAP_FAILED }
}

/// Resident pages of the arena at `address`; `None` if it is not mapped.
fn resident_pages(address: usize) -> Option<usize> {
    // Room for pages of 4 KiB: an emulator answers for each page of its own machine, whatever the program's are.
    let mut pages = vec![0_u8; ARENA_BYTES / 4096];
    let start = ptr::with_exposed_provenance_mut::<c_void>(address);
    // SAFETY: room for an answer for each page, however small; the call touches nothing else.
    let answer = unsafe { libc::mincore(start, ARENA_BYTES, pages.as_mut_ptr()) };
    (answer == 0).then(|| pages.iter().filter(|&&page| page & 1 == 1).count())
}

/// Makes the mapping of the arena at `address` longer by a page at each end.
fn extend(address: usize) {
    for neighbour in [address - page_bytes(), address + ARENA_BYTES] {
        map_page(neighbour);
    }
}

fn arenas(alloc: &LocalPymalloc<LibcMalloc, pymalloc_core::MmapArenas>) -> Vec<usize> {
    let mut found = Vec::new();
    alloc.for_each_pool(|pool| found.push(pool.arena));
    found.dedup();
    found
}

/// The memory of arenas that stay mapped goes back, they are counted as gone once, and requests are served throughout.
#[test]
fn arenas_that_stay_mapped_hold_no_memory() {
    alone("limits::arenas_that_stay_mapped_hold_no_memory", || {
        let exhausted = Exhausted::reserve();
        block_the_region();
        let alloc = LocalPymalloc::new(LibcMalloc);
        let blocks: Vec<_> = (0..1_000)
            .map(|_| {
                let block = alloc.malloc(POOLED_MAX).expect("memory");
                // SAFETY: a live block of this size.
                unsafe { block.write_bytes(1, POOLED_MAX) };
                block
            })
            .collect();
        let arenas = arenas(&alloc);
        let full_pages = (200 << 12) / page_bytes();
        let full = arenas.iter().filter(|&&arena| resident_pages(arena) > Some(full_pages)).count();
        assert!(full >= 8, "{full} of {} arenas are resident", arenas.len());
        arenas.iter().for_each(|&arena| extend(arena));
        exhausted.fill();
        for block in blocks {
            // SAFETY: live, and not used again.
            unsafe { alloc.free(Some(block)) };
        }
        let before = alloc.stats().arenas_current;
        assert_eq!(
            alloc.release(ReleaseLevel::Arenas),
            before * ARENA_BYTES,
            "each is counted once"
        );
        alloc.check_invariants();
        assert_eq!(alloc.stats().arenas_current, 0);
        let kept: Vec<_> = arenas.iter().filter_map(|&arena| resident_pages(arena)).collect();
        assert!(kept.len() >= 6, "{} arenas stay mapped", kept.len());
        assert!(kept.iter().all(|&pages| pages == 0), "{kept:?} pages");
        let summary = run(&generate::random(5, 1_000, 9_000), &alloc).expect("no fault");
        assert_eq!(summary.failed, 0, "the fallback serves");
        alloc.check_invariants();
        drop(exhausted);
        let block = alloc.malloc(100).expect("memory");
        assert!(alloc.owns(block.as_ptr()), "arenas again");
        // SAFETY: live, and not used again.
        unsafe { alloc.free(Some(block)) };
        alloc.check_invariants();
    });
}

/// Of the region nothing is unmapped, but access and advice change for parts of it.
#[test]
fn a_region_serves_at_the_limit() {
    alone("limits::a_region_serves_at_the_limit", || {
        let exhausted = Exhausted::reserve();
        let alloc = LocalPymalloc::new(LibcMalloc);
        let held: Vec<_> = (0..300).map(|_| alloc.malloc(POOLED_MAX).expect("memory")).collect();
        exhausted.fill();
        for seed in 0..3 {
            let summary = run(&generate::random(seed, 1_000, 9_000), &alloc).expect("no fault");
            assert_eq!(summary.failed, 0);
            alloc.release(
                [ReleaseLevel::Arenas, ReleaseLevel::Pools, ReleaseLevel::Pages][seed as usize],
            );
            alloc.check_invariants();
        }
        for block in held {
            // SAFETY: live, and not used again.
            unsafe { alloc.free(Some(block)) };
        }
        assert_eq!(alloc.allocated_blocks(), 0);
    });
}

/// Bytes of addresses that the process has.
fn addresses() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux reports addresses");
    let pages: usize = statm.split(' ').next().and_then(|n| n.parse().ok()).expect("a number");
    pages * page_bytes()
}

/// The pools take hardly more addresses than memory, and give them back: a limit that a program sets for itself counts them
/// all. A block that stays keeps no more than its own pair of arenas.
#[test]
fn addresses_follow_the_memory() {
    alone("limits::addresses_follow_the_memory", || {
        const SLACK: usize = 3 << 20;
        let before = addresses();
        let alloc = LocalPymalloc::new(LibcMalloc);
        let arenas = |alloc: &LocalPymalloc<_, _>| alloc.stats().arenas_current * ARENA_BYTES;
        let fill = || -> Vec<_> { (0..30_000).map(|_| alloc.malloc(POOLED_MAX)).collect() };
        for round in 0..2 {
            let mut blocks = fill();
            let taken = addresses() - before;
            assert!(taken < arenas(&alloc) + SLACK, "round {round}: {taken} bytes");
            let last = blocks.pop().flatten();
            // SAFETY: live, and not used again.
            blocks.into_iter().for_each(|block| unsafe { alloc.free(block) });
            alloc.release(ReleaseLevel::Arenas);
            assert_eq!(arenas(&alloc), ARENA_BYTES);
            let taken = addresses() - before;
            assert!(taken < ARENA_BYTES + SLACK, "round {round}: {taken} bytes are left");
            // SAFETY: live, and not used again.
            unsafe { alloc.free(last) };
        }
    });
}

/// Sets the limit of the process's addresses.
fn set_limit(bytes: libc::rlim_t) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: a filled structure.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limit) }, 0);
}

/// What is kept for later goes back when the fallback has no memory.
#[test]
fn a_request_without_memory_takes_what_is_kept() {
    alone("limits::a_request_without_memory_takes_what_is_kept", || {
        let alloc = LocalPymalloc::new(LibcMalloc);
        let held = || alloc.stats().arenas_current * ARENA_BYTES;
        let mut blocks: Vec<_> = (0..25_000).map(|_| alloc.malloc(8_000)).collect();
        // After this, which is larger than all that follow, free pools give way to a large block only where there is no memory.
        // SAFETY: live, and not used again.
        blocks.drain(24_500..).for_each(|block| unsafe { alloc.free(block) });
        let largest = alloc.malloc(1 << 30);
        // SAFETY: live, and not used again.
        unsafe { alloc.free(largest) };
        // As much is kept as is in use.
        // SAFETY: live, and not used again.
        blocks.drain(12_500..).for_each(|block| unsafe { alloc.free(block) });
        let kept = held();
        // Nothing but what is kept makes room for these: they are longer than what glibc reserves for a thread.
        let limit = addresses() + (20 << 20);
        set_limit(libc::rlim_t::try_from(limit).expect("a number"));
        let large = alloc.malloc(80 << 20);
        let in_use = held();
        // SAFETY: live, and not used again.
        blocks.into_iter().for_each(|block| unsafe { alloc.free(block) });
        let rest = held();
        let size = (80 << 20) + limit - addresses() + rest / 2;
        // SAFETY: 1: live; 2: only the answer is used.
        let larger = unsafe { alloc.realloc(large, size) };
        let at_end = held();
        set_limit(libc::RLIM_INFINITY);
        assert!(
            large.is_some() && larger.is_some(),
            "{kept}, {in_use}, {rest}, {at_end} bytes held"
        );
        assert!(kept > in_use + (10 << 20), "{kept} bytes before, {in_use} after");
        assert!(rest > 0 && at_end == 0, "{rest} bytes before, {at_end} after");
        // SAFETY: live, and not used again.
        unsafe { alloc.free(larger) };
        assert_eq!(alloc.allocated_blocks(), 0);
    });
}
