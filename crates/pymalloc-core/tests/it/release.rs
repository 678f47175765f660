//! Memory goes back: what each level returns, and that live blocks keep their bytes.

use std::ptr::NonNull;

use malloc_api::testing::{alone, resident_bytes};
use malloc_api::{LibcMalloc, Malloc, page_bytes};
use pymalloc_core::{
    ARENA_BYTES, LocalPymalloc, MmapArenas, POOL_BYTES, POOLED_MAX, PoolContents, ReleaseLevel,
    SizeClass,
};

use crate::huge_pages::are_transparent;

#[test]
fn one_percent_of_a_million_blocks_holds_little() {
    // Other tests of this process allocate meanwhile, and the system counts all of it.
    alone(
        "release::one_percent_of_a_million_blocks_holds_little",
        free_all_but_one_percent_and_release,
    );
}

fn free_all_but_one_percent_and_release() {
    let alloc = LocalPymalloc::new(LibcMalloc);
    let mut rng = fastrand::Rng::with_seed(7);
    let mut blocks: Vec<(NonNull<u8>, usize)> = Vec::with_capacity(1_000_000);
    for index in 0..1_000_000 {
        let size = rng.usize(16..=512);
        let block = alloc.malloc(size).unwrap();
        // SAFETY: a live block of `size` bytes.
        unsafe { block.write_bytes(index as u8, size) };
        blocks.push((block, size));
    }
    let full = resident_bytes();
    let mut kept = Vec::new();
    for (index, (block, size)) in blocks.iter().enumerate() {
        if rng.u32(..100) == 0 {
            kept.push((*block, *size, index as u8));
        } else {
            // SAFETY: live, and not used again.
            unsafe { alloc.free(Some(*block)) };
        }
    }
    let returned = alloc.release(ReleaseLevel::Pages);
    alloc.check_invariants();
    let fallen = full.saturating_sub(resident_bytes());
    // The frees alone have returned what was free beyond the bytes in use. Of several pools in a page one is in use.
    if page_bytes() <= POOL_BYTES {
        assert!(returned > 50 << 20, "{returned} bytes returned");
        assert!(fallen > 150 << 20, "{fallen} bytes fallen");
    }
    for (block, size, pattern) in kept {
        // SAFETY: a live block of `size` bytes.
        let bytes = unsafe { std::slice::from_raw_parts(block.as_ptr(), size) };
        assert!(bytes.iter().all(|byte| *byte == pattern));
        // SAFETY: live, and forgotten.
        unsafe { alloc.free(Some(block)) };
    }
    alloc.check_invariants();
}

#[test]
fn each_level_returns_what_it_names() {
    let alloc = LocalPymalloc::new(LibcMalloc);
    let blocks: Vec<_> = (0..5_000).map(|_| alloc.malloc(512).unwrap()).collect();
    let arenas = alloc.stats().arenas_current;
    // One block in each 64 stays: pools of 32 blocks empty out by twos, no arena does.
    let (kept, gone): (Vec<_>, Vec<_>) = blocks.iter().enumerate().partition(|(i, _)| i % 64 == 0);
    for (_, block) in gone {
        // SAFETY: live, and not used again.
        unsafe { alloc.free(Some(*block)) };
    }
    assert_eq!(alloc.release(ReleaseLevel::Arenas), 0);
    assert_eq!(alloc.stats().arenas_current, arenas);
    // Whole pages alone go back.
    let pools = alloc.release(ReleaseLevel::Pools);
    assert!(pools >= 60 * POOL_BYTES || page_bytes() > POOL_BYTES, "{pools}");
    let pages = alloc.release(ReleaseLevel::Pages);
    assert!(pages >= 60 * 4096 * 2 || page_bytes() > POOL_BYTES / 4, "{pages}");
    alloc.check_invariants();
    for (_, block) in kept {
        // SAFETY: live, and forgotten.
        unsafe { alloc.free(Some(*block)) };
    }
    assert_eq!(alloc.release(ReleaseLevel::Arenas), arenas * ARENA_BYTES);
}

/// Bytes of free pools that are resident, and the number of classes that have a pool open.
fn kept(alloc: &LocalPymalloc<LibcMalloc, MmapArenas>) -> (usize, usize) {
    let mut resident = 0;
    alloc.for_each_pool(|pool| {
        let is_kept = pool.contents == PoolContents::Free { is_resident: true };
        resident += pool.bytes * usize::from(is_kept);
    });
    let open = alloc.stats().classes.iter().filter(|class| class.pools > 0).count();
    (resident, open)
}

/// Frees alone give memory back, down to a floor of 6 MiB, and a trim closes the pools that their classes keep empty.
#[test]
fn what_is_kept_has_a_floor_and_a_ceiling() {
    let alloc = LocalPymalloc::new(LibcMalloc);
    let fill = |bytes: usize| -> Vec<_> {
        (0..bytes / POOLED_MAX).map(|_| alloc.malloc(500).and(alloc.malloc(8_000))).collect()
    };
    let empty = |blocks: Vec<_>| {
        // SAFETY: live, and not used again.
        blocks.into_iter().for_each(|block| unsafe { alloc.free(block) });
    };
    // One block of each class comes and goes, so that each keeps a pool.
    empty(SizeClass::all().skip(1).map(|class| alloc.malloc(class.size() - 16)).collect());
    assert!(kept(&alloc).1 > 50, "{:?}", kept(&alloc));
    empty(fill(5 << 20));
    assert!(kept(&alloc).0 > 4 << 20, "nothing goes back below the floor: {:?}", kept(&alloc));
    empty(fill(40 << 20));
    let (resident, open) = kept(&alloc);
    assert!((4 << 20..=6 << 20).contains(&resident), "{resident} bytes are kept");
    assert!(open <= 4, "{open} classes keep a pool after a trim");
}

/// Page faults of this thread so far.
fn faults() -> i64 {
    // SAFETY: all zeros are a valid `rusage`: it has numbers only.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` is writable.
    unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) };
    usage.ru_minflt
}

/// 50,000 blocks of 800 bytes, 40 MiB, written to.
fn blocks_of_40_mib(alloc: &LocalPymalloc<LibcMalloc, MmapArenas>) -> Vec<NonNull<u8>> {
    let block = |_| {
        let block = alloc.malloc(800).unwrap();
        // SAFETY: a live block of 800 bytes.
        unsafe { block.write_bytes(1, 800) };
        block
    };
    (0..50_000).map(block).collect()
}

/// Blocks of 40 MiB that come and go; returns the page faults of this thread meanwhile.
fn burst(alloc: &LocalPymalloc<LibcMalloc, MmapArenas>) -> i64 {
    let before = faults();
    for block in blocks_of_40_mib(alloc) {
        // SAFETY: live, and forgotten.
        unsafe { alloc.free(Some(block)) };
    }
    faults() - before
}

/// Arenas of which a few blocks are left get the rest back by huge pages, where the system has them.
#[test]
fn what_went_back_and_is_needed_again_comes_at_once() {
    if !are_transparent() {
        eprintln!("skipped: the system has no transparent huge pages");
        return;
    }
    alone("release::what_went_back_and_is_needed_again_comes_at_once", || {
        let alloc = LocalPymalloc::new(LibcMalloc);
        let mut blocks = blocks_of_40_mib(&alloc);
        let mut index = 0;
        blocks.retain(|block| {
            index += 1;
            if index % 600 != 0 {
                // SAFETY: live, and not used again.
                unsafe { alloc.free(Some(*block)) };
            }
            index % 600 == 0
        });
        alloc.check_invariants();
        let free = kept(&alloc).0;
        assert!(free < 8 << 20, "{free} bytes are kept");
        let before = faults();
        let again = blocks_of_40_mib(&alloc);
        let faults = faults() - before;
        alloc.check_invariants();
        assert!(faults < 2_000, "{faults} page faults for 40 MiB");
        for block in blocks {
            // SAFETY: a live block of 800 bytes.
            let bytes = unsafe { std::slice::from_raw_parts(block.as_ptr(), 800) };
            assert!(bytes.iter().all(|byte| *byte == 1));
        }
        drop(again);
    });
}

/// Blocks beyond the pools, each larger than those before, take the place of pools that are free for the moment.
#[test]
fn large_blocks_take_the_place_of_free_pools() {
    alone("release::large_blocks_take_the_place_of_free_pools", || {
        let alloc = LocalPymalloc::new(LibcMalloc);
        let fill = |size: usize| {
            let block = alloc.malloc(size).unwrap();
            // SAFETY: a live block of `size` bytes.
            unsafe { block.write_bytes(1, size) };
            block
        };
        let mut blocks: Vec<_> = (0..50_000).map(|_| fill(800)).collect();
        for block in blocks.drain(25_000..) {
            // SAFETY: live, and not used again.
            unsafe { alloc.free(Some(block)) };
        }
        let (before, spare) = (resident_bytes(), kept(&alloc).0);
        assert!(spare > 12 << 20, "{spare} bytes are kept beside as many in use");
        let sizes: Vec<usize> = (0..14).map(|index| (1 << 20) + index * 4096).collect();
        blocks.extend(sizes.iter().map(|size| fill(*size)));
        let large = sizes.iter().sum::<usize>();
        let grown = resident_bytes().saturating_sub(before);
        assert!(grown < large / 4, "{grown} bytes more for {large}");
        // SAFETY: live, and not used again.
        blocks.into_iter().for_each(|block| unsafe { alloc.free(Some(block)) });
        alloc.check_invariants();
    });
}

/// Threads of this process.
fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

/// Resident pages of each arena whose pools are all free.
fn pages_of_free_arenas(alloc: &LocalPymalloc<LibcMalloc, MmapArenas>) -> Vec<u8> {
    let mut arenas = std::collections::BTreeMap::new();
    alloc.for_each_pool(|pool| {
        let is_free = matches!(pool.contents, PoolContents::Free { .. });
        *arenas.entry(pool.arena).or_insert(true) &= is_free;
    });
    let pages = |arena: usize| {
        let mut pages = [0; ARENA_BYTES / 4096];
        let start = std::ptr::with_exposed_provenance_mut(arena);
        // SAFETY: mapped pages, and a byte for each.
        let answer = unsafe { libc::mincore(start, ARENA_BYTES, pages.as_mut_ptr()) };
        assert_eq!(answer, 0);
        pages.iter().map(|page| page & 1).sum()
    };
    arenas.into_iter().filter(|(_, is_free)| *is_free).map(|(arena, _)| pages(arena)).collect()
}

/// What is kept after a burst goes while the process makes no call, and the thread that saw to it ends.
#[test]
fn an_idle_process_holds_little() {
    alone("release::an_idle_process_holds_little", || {
        let alloc = LocalPymalloc::new(LibcMalloc);
        let before = (resident_bytes(), threads());
        let first = alloc.malloc(100);
        assert_eq!(threads(), before.1, "no thread before there is something to do");
        burst(&alloc);
        let after = resident_bytes() - before.0;
        assert!(after > 4 << 20, "{after} bytes are kept for a moment");
        let live: Vec<_> = (0..1_000).map(|_| alloc.calloc(1, 800).unwrap()).collect();
        // SAFETY: live blocks of 800 bytes.
        live.iter().for_each(|block| unsafe { block.write_bytes(7, 800) });
        assert_eq!(threads(), before.1 + 1);
        std::thread::sleep(std::time::Duration::from_secs(7));
        let idle = resident_bytes() - before.0;
        assert!(idle < 2 << 20, "{idle} bytes are kept by an idle process");
        assert_eq!(threads(), before.1, "the thread has ended");
        let pages = pages_of_free_arenas(&alloc);
        assert!(pages.len() > 1 && pages.iter().all(|pages| *pages == 1), "records: {pages:?}");
        for block in live {
            // SAFETY: a live block of 800 bytes.
            let bytes = unsafe { std::slice::from_raw_parts(block.as_ptr(), 800) };
            assert!(bytes.iter().all(|byte| *byte == 7), "a live block went back");
            // SAFETY: live, and forgotten.
            unsafe { alloc.free(Some(block)) };
        }
        alloc.check_invariants();
        // What went is had again, and goes again.
        burst(&alloc);
        assert_eq!(threads(), before.1 + 1);
        // SAFETY: live, and forgotten.
        unsafe { alloc.free(first) };
        alloc.check_invariants();
    });
}

/// Before a fork the thread ends and what is kept goes; parent and child go on.
#[test]
fn a_fork_has_no_second_thread() {
    alone("release::a_fork_has_no_second_thread", || {
        let alloc = LocalPymalloc::new(LibcMalloc);
        let before = (resident_bytes(), threads());
        for _ in 0..20 {
            burst(&alloc);
            assert_eq!(threads(), before.1 + 1);
            // SAFETY: the child calls what may follow a fork, and ends without unwinding.
            let child = unsafe { libc::fork() };
            if child == 0 {
                // SAFETY: a child that hangs ends by the alarm.
                unsafe { libc::alarm(20) };
                burst(&alloc);
                let is_watched = threads() == 2;
                // SAFETY: the child ends here.
                unsafe { libc::_exit(i32::from(!is_watched)) };
            }
            let (kept, count) = (resident_bytes() - before.0, threads());
            let mut status = 0;
            // SAFETY: a child of ours, and a place for its status.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            assert_eq!(status, 0, "the child has a thread of its own");
            assert_eq!(count, before.1, "the parent has one thread");
            assert!(kept < 2 << 20, "{kept} bytes are kept over a fork");
        }
    });
}

/// Without the thread, later calls give back what is kept.
#[test]
fn without_a_thread_calls_give_memory_back() {
    alone("release::without_a_thread_calls_give_memory_back", || {
        MmapArenas::allow_background_thread(false);
        let alloc = LocalPymalloc::new(LibcMalloc);
        let before = (resident_bytes(), threads());
        burst(&alloc);
        let after = resident_bytes() - before.0;
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_secs(2));
            // A pool of another class opens and closes.
            let blocks: Vec<_> = (0..2_000).map(|_| alloc.malloc(16)).collect();
            // SAFETY: live, and forgotten.
            blocks.into_iter().for_each(|block| unsafe { alloc.free(block) });
        }
        let idle = resident_bytes() - before.0;
        assert_eq!(threads(), before.1);
        assert!(idle + (3 << 20) < after, "{idle} bytes are kept, of {after}");
    });
}
