//! What the pools do when the system refuses: each of its memory calls at each turn, and the kernel itself at its limit.
//!
//! A program of its own, for it takes the place of the C library's functions. Each refusal is met by a child of its own, as
//! the first calls of a process are made once.
#![cfg(all(target_os = "linux", target_pointer_width = "64"))]

// AddressSanitizer needs mappings and addresses of its own.
#[cfg(not(pymem_asan))]
mod limits;

use malloc_api::testing::{MemoryCall, Refusals, test_process};
use malloc_api::{LibcMalloc, Malloc, page_bytes};
use malloc_trace::{Domain, Op, ShadowModel};
use pymalloc_core::{
    ARENA_BYTES, HugePages, LocalPymalloc, MmapArenas, NoFallback, POOLED_MAX, ReleaseLevel,
};
use rstest::rstest;

malloc_api::refuse_memory_calls!();

const VARIABLE: &str = "PYMALLOC_TEST_REFUSAL";

/// Blocks that live at one time, of every class, so that many pools are opened.
const SLOTS: u32 = 120;

fn size(slot: u32) -> usize {
    slot as usize * 7919 % POOLED_MAX + 1
}

/// What the system is asked for memory by.
fn grow() -> impl Iterator<Item = Op> {
    (0..SLOTS).map(|slot| match slot % 3 {
        0 => Op::calloc(slot, Domain::Raw, size(slot)),
        _ => Op::malloc(slot, Domain::Raw, size(slot)),
    })
}

/// Frees of two thirds in another order, and some that resize.
fn shrink() -> impl Iterator<Item = Op> {
    (0..SLOTS).map(|index| index * 401 % SLOTS).filter(|slot| slot % 6 != 1).map(|slot| {
        match slot % 6 {
            0 => Op::realloc(slot, Domain::Raw, size(slot + 1)),
            _ => Op::free(slot, Domain::Raw),
        }
    })
}

/// The allocators of a child: what they do when a request finds no pool, whether arenas may lie in huge pages, and whether
/// refusals begin with the process or when the allocator has arenas already, as it must to get huge pages.
#[derive(Clone, Copy, Debug)]
struct Setting {
    falls_back: bool,
    huge_pages: HugePages,
    is_warm: bool,
}

/// Every setting that matters, with the name that a child is told.
const SETTINGS: [(&str, Setting); 4] = {
    use HugePages::{Hugetlb, Madvise, Never};
    [
        ("cold", Setting { falls_back: false, huge_pages: Never, is_warm: false }),
        (
            "cold, with a fallback",
            Setting { falls_back: true, huge_pages: Madvise, is_warm: false },
        ),
        ("warm", Setting { falls_back: false, huge_pages: Madvise, is_warm: true }),
        (
            "warm, with reserved pages",
            Setting { falls_back: false, huge_pages: Hugetlb, is_warm: true },
        ),
    ]
};

/// The program of a child: everything that asks the system for memory or gives some back. Returns the requests that got none.
fn program<R: Malloc>(raw: R, setting: Setting, refuse: impl FnOnce() -> Refusals) -> Refusals {
    let source = MmapArenas::with_huge_pages(setting.huge_pages);
    let alloc = LocalPymalloc::with_source(raw, source);
    let warm = if setting.is_warm { 2 * ARENA_BYTES / POOLED_MAX } else { 0 };
    let warm: Vec<_> = (0..warm).map(|_| alloc.malloc(POOLED_MAX)).collect();
    let refusals = refuse();
    // Keeps the other half of an arena's huge page for good, so that the arena goes back alone.
    let neighbour = LocalPymalloc::new(LibcMalloc);
    assert!(neighbour.malloc(1).is_some());
    neighbour.check_invariants();
    let mut model = ShadowModel::new([&alloc; 3]);
    let mut step = |op| model.step(op).expect("no fault");
    grow().for_each(&mut step);
    alloc.check_invariants();
    shrink().for_each(&mut step);
    let before = alloc.stats().arenas_current;
    let returned = alloc.release(ReleaseLevel::Pages);
    assert!(returned <= before * ARENA_BYTES, "{returned} bytes of {before} arenas");
    alloc.check_invariants();
    model.check_all().expect("no live block has changed");
    grow().take(SLOTS as usize / 3).for_each(|op| model.step(op).expect("no fault"));
    assert_eq!(alloc.allocated_blocks(), model.summary().live_blocks + warm.len());
    assert!(model.summary().failed == 0 || !setting.falls_back, "the fallback serves");
    model.free_all().expect("no fault");
    // SAFETY: live, and not used again.
    warm.into_iter().for_each(|block| unsafe { alloc.free(block) });
    let arenas = alloc.stats().arenas_current;
    assert_eq!(
        alloc.release(ReleaseLevel::Arenas),
        arenas * ARENA_BYTES,
        "each arena goes back once"
    );
    alloc.check_invariants();
    assert_eq!((alloc.stats().arenas_current, alloc.allocated_blocks()), (0, 0));
    refusals
}

/// What a child runs; in the parent nothing is refused.
#[test]
fn child() {
    let words = std::env::var(VARIABLE).unwrap_or_else(|_| String::from("all;0;0;cold"));
    let words: Vec<&str> = words.split(';').collect();
    let &[kinds, start, stop, name] = &words[..] else { panic!("{words:?}") };
    let kinds = match kinds {
        "all" => &MemoryCall::ALL[..],
        "way back" => &[MemoryCall::Munmap, MemoryCall::Madvise],
        _ => panic!("no calls are called {kinds:?}"),
    };
    let refuse = || Refusals::of(kinds, start.parse().unwrap(), stop.parse().unwrap());
    let (_, setting) = SETTINGS.into_iter().find(|(known, _)| *known == name).unwrap();
    let refusals = match setting.falls_back {
        true => program(LibcMalloc, setting, refuse),
        false => program(NoFallback, setting, refuse),
    };
    println!("\n{} calls, {} failures", refusals.calls(), refusals.failures());
    drop(refusals);
    // The system gives again, and arenas that came back dirty are met.
    drop(program(LibcMalloc, setting, || Refusals::of(&[], 0, 0)));
    let alloc = LocalPymalloc::new(LibcMalloc);
    let block = alloc.malloc(100);
    assert!(block.is_some_and(|block| alloc.owns(block.as_ptr())));
    // SAFETY: live, and not used again.
    unsafe { alloc.free(block) };
}

/// Runs the child, and returns how many calls it made and how many of them failed.
fn run(words: &str) -> (usize, usize) {
    let output = test_process("child").env(VARIABLE, words).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{words}: {text}{}", String::from_utf8_lossy(&output.stderr));
    let counts = text.lines().find_map(|line| {
        let (calls, failures) = line.strip_suffix(" failures")?.split_once(" calls, ")?;
        Some((calls.parse().ok()?, failures.parse().ok()?))
    });
    counts.expect("the child tells its counts")
}

/// What is left of `calls` with pages that are larger than 4 KiB, of which fewer are free as a whole.
fn fewer(calls: usize) -> usize {
    (calls << 12).div_ceil(page_bytes())
}

/// One call refused, and every one from a turn on, at each turn of the program.
#[rstest]
fn each_refusal_is_survived(#[values(0, 1, 2, 3)] setting: usize) {
    let (name, _) = SETTINGS[setting];
    for (lasting, step) in [(false, 1), (true, 4)] {
        let mut start = 0;
        loop {
            let stop = if lasting { usize::MAX } else { start + 1 };
            let (calls, failures) = run(&format!("all;{start};{stop};{name}"));
            if failures == 0 {
                assert!(calls >= fewer(20), "the program makes {calls} calls");
                break;
            }
            start += step;
        }
    }
}

/// Nothing goes back: neither pages nor the memory behind them. What is free is used again all the same.
#[rstest]
fn a_system_that_takes_nothing_back_loses_nothing(#[values(0, 1, 2, 3)] setting: usize) {
    let (name, _) = SETTINGS[setting];
    let (calls, failures) = run(&format!("way back;0;{};{name}", usize::MAX));
    assert!(failures >= fewer(8) && failures == calls, "{failures} of {calls} calls");
}
