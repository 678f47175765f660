//! A source of arenas and a fallback that fail at every turn: null reaches the caller, nothing is lost, counts balance.

use std::cell::Cell;
use std::ptr::NonNull;

use malloc_api::testing::{Counting, FailAfter};
use malloc_api::{LibcMalloc, Malloc};
use malloc_trace::{Domain, Op, ShadowModel, generate};
use pymalloc_core::{
    ArenaSource, Graveyard, LocalPymalloc, LockedPymalloc, MmapArenas, NoFallback, OwnedPymalloc,
    ReleaseLevel, Span,
};
use rstest::rstest;

/// Arenas from `mmap`, of which those with `start < number <= stop` are refused, as are tables and the way back of pages; they
/// lie in the process's region, or where no span tells of them.
struct Refusing {
    has_span: bool,
    start: usize,
    stop: usize,
    calls: Cell<usize>,
    refusals: Cell<usize>,
    arenas: Cell<usize>,
    tables: Cell<usize>,
}

impl Refusing {
    fn new(has_span: bool, start: usize, stop: usize) -> Self {
        let [calls, refusals, arenas, tables] = [const { Cell::new(0) }; 4];
        Self { has_span, start, stop, calls, refusals, arenas, tables }
    }

    fn is_refused(&self) -> bool {
        let number = self.calls.get() + 1;
        self.calls.set(number);
        let refused = self.start < number && number <= self.stop;
        self.refusals.set(self.refusals.get() + usize::from(refused));
        refused
    }
}

// SAFETY: 1-6: those of `MmapArenas`, to which each method leads that answers anything but a refusal.
unsafe impl ArenaSource for Refusing {
    const IS_ZEROED: bool = true;

    fn alloc(&self, size: usize) -> Option<NonNull<u8>> {
        if self.is_refused() {
            return None;
        }
        let arena = MmapArenas::new().alloc(size)?;
        self.arenas.set(self.arenas.get() + 1);
        Some(arena)
    }

    unsafe fn free(&self, arena: NonNull<u8>, size: usize) {
        self.arenas.set(self.arenas.get() - 1);
        // SAFETY: the caller's duty 1.
        unsafe { MmapArenas::new().free(arena, size) };
    }

    fn span(&self) -> Option<Span> {
        MmapArenas::new().span().filter(|_| self.has_span)
    }

    fn alloc_table(&self, bytes: usize) -> Option<NonNull<u8>> {
        if self.is_refused() {
            return None;
        }
        let table = MmapArenas::new().alloc_table(bytes)?;
        self.tables.set(self.tables.get() + 1);
        Some(table)
    }

    unsafe fn free_table(&self, table: NonNull<u8>, bytes: usize) {
        self.tables.set(self.tables.get() - 1);
        // SAFETY: the caller's duty 1.
        unsafe { MmapArenas::new().free_table(table, bytes) };
    }

    unsafe fn purge(&self, start: NonNull<u8>, bytes: usize) -> usize {
        if self.is_refused() {
            return 0;
        }
        // SAFETY: the caller's duty 1.
        unsafe { MmapArenas::new().purge(start, bytes) }
    }
}

/// Requests that fill some arenas, resize, and leave a part; zero bytes and large ones are for the fallback.
fn operations() -> Vec<Op> {
    const LARGE: std::ops::Range<u32> = 100..240;
    let mut ops = generate::random(17, 90, 16_000);
    ops.extend(LARGE.map(|slot| Op::malloc(slot, Domain::Raw, 8_000)));
    ops.extend(LARGE.filter(|slot| slot % 4 != 0).map(|slot| Op::free(slot, Domain::Raw)));
    ops.extend(LARGE.step_by(8).map(|slot| Op::realloc(slot, Domain::Raw, 3_000)));
    ops.extend((400..420).map(|slot| Op::calloc(slot, Domain::Raw, slot as usize * 20)));
    ops
}

/// Runs the program, gives back what can be given back at each level, and counts.
fn run<R: Malloc>(alloc: &LocalPymalloc<R, &Refusing>, ops: &[Op]) -> usize {
    let mut model = ShadowModel::new([alloc; 3]);
    for (index, part) in ops.chunks(ops.len() / 3 + 1).enumerate() {
        part.iter().for_each(|op| model.step(*op).expect("no fault"));
        assert_eq!(alloc.allocated_blocks(), model.summary().live_blocks);
        alloc.release([ReleaseLevel::Pages, ReleaseLevel::Pools, ReleaseLevel::Arenas][index]);
        alloc.check_invariants();
        model.check_all().expect("no live block has changed");
    }
    let failed = model.summary().failed;
    model.free_all().expect("no fault");
    assert_eq!(alloc.allocated_blocks(), 0);
    alloc.check_invariants();
    failed
}

/// The source refuses one call, or all from one on; without a fallback null reaches the caller.
#[rstest]
fn a_source_that_refuses_at_any_turn(
    #[values(true, false)] has_span: bool,
    #[values(true, false)] falls_back: bool,
    #[values(true, false)] lasting: bool,
) {
    let ops = operations();
    let (mut start, mut failed) = (0, 0);
    loop {
        let stop = if lasting { usize::MAX } else { start + 1 };
        let source = Refusing::new(has_span, start, stop);
        if falls_back {
            assert_eq!(run(&LocalPymalloc::with_source(LibcMalloc, &source), &ops), 0);
        } else {
            failed += run(&LocalPymalloc::with_source(NoFallback, &source), &ops);
        }
        assert_eq!((source.arenas.get(), source.tables.get()), (0, 0), "all of it went back");
        if source.refusals.get() == 0 {
            break;
        }
        start += 1;
    }
    assert!(start >= 4, "the program makes {start} calls");
    assert!(falls_back || failed > 0);
}

/// The fallback refuses at every turn, in arenas of its own: it also has the table of those that no span tells of.
#[rstest]
fn a_fallback_that_refuses_at_any_turn(
    #[values(true, false)] has_span: bool,
    #[values(true, false)] lasting: bool,
) {
    let ops = operations();
    let mut start = 0;
    loop {
        let stop = if lasting { usize::MAX } else { start + 1 };
        let source = Refusing::new(has_span, 0, 0);
        let raw = FailAfter::new(Counting::new(LibcMalloc), 0);
        raw.set_window(start, stop);
        let alloc = LocalPymalloc::with_source(&raw, &source);
        let failed = run(&alloc, &ops);
        drop(alloc);
        assert_eq!((source.arenas.get(), source.tables.get()), (0, 0), "all of it went back");
        assert_eq!(raw.inner().counts().live_blocks, 0);
        if raw.failures() == 0 {
            assert_eq!(failed, 0);
            break;
        }
        start += 1;
    }
    assert!(start >= 12, "the fallback is asked {start} times");
}

/// One block freed is enough to go on, whatever was refused before.
#[test]
fn one_free_is_enough_to_go_on() {
    let source = Refusing::new(true, 3, usize::MAX);
    let alloc = LocalPymalloc::with_source(NoFallback, &source);
    let mut blocks: Vec<_> = std::iter::from_fn(|| alloc.malloc(8_000)).collect();
    assert_eq!(source.arenas.get(), 2, "a table, two arenas, and no third");
    for _ in 0..3 {
        // SAFETY: live, and not used again.
        unsafe { alloc.free(blocks.pop()) };
        blocks.extend(alloc.malloc(8_000));
        assert_eq!(alloc.malloc(8_000), None);
        assert_eq!(alloc.allocated_blocks(), blocks.len());
        alloc.check_invariants();
    }
    for block in blocks {
        // SAFETY: live, and not used again.
        unsafe { alloc.free(Some(block)) };
    }
    assert_eq!(alloc.allocated_blocks(), 0);
}

/// Without memory for a grave the blocks of an allocator that ended stay valid, and nobody else's are touched.
#[test]
fn a_burial_without_memory_leaves_the_blocks_alone() {
    let raw = FailAfter::new(LibcMalloc, usize::MAX);
    let graveyard = Graveyard::new();
    let ended = LocalPymalloc::new(&raw);
    let block = ended.malloc(100).expect("memory");
    // SAFETY: a live block of this size.
    unsafe { block.write_bytes(7, 100) };
    raw.set(0);
    assert_eq!(graveyard.bury(ended), 1);
    assert_eq!(raw.failures(), 1);
    raw.disarm();
    assert_eq!(graveyard.allocated_blocks(), 0);
    // SAFETY: a live block, of an allocator that is not buried.
    assert!(!unsafe { graveyard.free(block) });
    let other = LocalPymalloc::new(&raw);
    malloc_trace::run(&generate::random(3, 500, 9_000), &other).expect("no fault");
    // SAFETY: live: its arena stays for ever.
    let bytes = unsafe { std::slice::from_raw_parts(block.as_ptr(), 100) };
    assert!(bytes.iter().all(|&byte| byte == 7));
}

/// The two shared forms hand failures on as the core does.
#[test]
fn shared_allocators_hand_failures_on() {
    let ops = generate::random(23, 90, 16_000);
    for start in 0.. {
        let raw = FailAfter::new(Counting::new(LibcMalloc), start);
        let locked = LockedPymalloc::new(&raw);
        malloc_trace::run(&ops, &locked).expect("no fault");
        locked.check_invariants();
        assert_eq!(locked.allocated_blocks(), 0);
        let failures = raw.failures();
        raw.set(start);
        let owned = OwnedPymalloc::new(&raw);
        malloc_trace::run(&ops, &owned).expect("no fault");
        owned.collect();
        owned.check_invariants();
        assert_eq!(owned.allocated_blocks(), 0);
        assert_eq!(raw.inner().counts().live_blocks, 0);
        if failures + raw.failures() == 0 {
            assert!(start >= 4, "the fallback is asked {start} times");
            break;
        }
    }
}
